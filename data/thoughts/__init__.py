"""Rows for continuous thoughts and their baselines: a chain of thought that a curriculum shortens, stage by stage."""

from data.thoughts.curriculum import METHODS, Chain, Curriculum, Markers
from data.thoughts.ending import NO_ENDING, Ending, ending_from, ending_of, prompt_row, with_places
from data.thoughts.rows import check_fit, collate, paired_batch, sizes, thought_batch, thought_row

__all__ = [
    "METHODS",
    "NO_ENDING",
    "Chain",
    "Curriculum",
    "Ending",
    "Markers",
    "check_fit",
    "collate",
    "ending_from",
    "ending_of",
    "paired_batch",
    "prompt_row",
    "sizes",
    "thought_batch",
    "thought_row",
    "with_places",
]
