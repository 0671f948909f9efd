"""ProsQA: its task, the graphs below it, the published rows, and what answers it without reasoning."""

from data.tasks.prosqa.task import ProsQA

__all__ = ["ProsQA"]
