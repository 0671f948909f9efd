"""Tasks: examples, a prompt for each, a demonstration, and a verdict on what the model said."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from data.names import check_options, unknown_name
from data.sources.examples import Example
from data.tasks.addition import Addition
from data.tasks.automaton import Automaton
from data.tasks.base import ReasoningTask, Task, Verdict
from data.tasks.contest import Contest
from data.tasks.countdown import Countdown
from data.tasks.general_points import GeneralPoints
from data.tasks.gsm8k import GSM8K
from data.tasks.gsm8k_equations import GSM8KEquations
from data.tasks.hops import Hops
from data.tasks.humaneval import HumanEval
from data.tasks.journeys import Journeys
from data.tasks.languages import Languages
from data.tasks.math import Math
from data.tasks.mbpp import MBPP
from data.tasks.multiplication import Multiplication
from data.tasks.parity import Parity
from data.tasks.planted import Planted
from data.tasks.prontoqa import ProntoQA
from data.tasks.prosqa import ProsQA
from data.tasks.recall import Recall
from data.tasks.running_sums import RunningSums
from data.tasks.selective_copying import SelectiveCopying
from data.tasks.traced_addition import TracedAddition

__all__ = ["TASKS", "Example", "ReasoningTask", "Task", "Verdict", "build_task"]

TASKS: dict[str, Callable[..., Any]] = {
    "addition": Addition,
    "automaton": Automaton,
    "contest": Contest,
    "countdown": Countdown,
    "general_points": GeneralPoints,
    "gsm8k": GSM8K,
    "gsm8k_equations": GSM8KEquations,
    "hops": Hops,
    "humaneval": HumanEval,
    "journeys": Journeys,
    "languages": Languages,
    "math": Math,
    "mbpp": MBPP,
    "multiplication": Multiplication,
    "parity": Parity,
    "planted": Planted,
    "prontoqa": ProntoQA,
    "prosqa": ProsQA,
    "recall": Recall,
    "running_sums": RunningSums,
    "selective_copying": SelectiveCopying,
    "traced_addition": TracedAddition,
}


def build_task(name: str, **options: Any) -> Task:
    """Returns a task by name; ValueError for an unknown name or option, with the nearest as a suggestion."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    known = [field.name for field in fields(TASKS[name]) if field.init]  # type: ignore[arg-type]
    check_options(f"task {name!r}", options, known)
    return TASKS[name](**options)
