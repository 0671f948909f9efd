"""LIMO's choice: problems that are hard but not hopeless, and the trace of each that reasons best by counted words.

A row is one trace of a problem. Source: LIMO (2502.03387, third version), sections 3.1.1 and 3.1.2. The paper names two
words of each kind, and weights, but no scale on which a length and shares of words add up; here each of the four
measures is divided by the largest among the traces that are compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.select.pool import Pool, Selection, Stage, check_number, keep, selection, sift, text

WORD = re.compile(r"\w+")
WEIGHTS = {"length": 0.30, "verification": 0.20, "exploration": 0.25, "connectives": 0.25}
WORDS = {
    "verification": ("check", "verify"),
    "exploration": ("perhaps", "might"),
    "connectives": ("therefore", "since"),
}


@dataclass(frozen=True)
class LIMO:
    """How many are chosen, and how often the strong model may have been right in its tries; tries of both models."""

    number: int = 800
    least: int = 1
    most: int = 3
    small_tries: int = 4
    strong_tries: int = 32


class Measures(NamedTuple):
    """What is measured of a trace: its words, and the share of them that verify, explore and connect."""

    length: float
    verification: float
    exploration: float
    connectives: float


def measures(trace: str) -> Measures:
    """The words of a trace, and the share of each kind among them; words are runs of letters and digits."""
    words = WORD.findall(trace.lower())
    shares = {kind: sum(words.count(word) for word in named) / max(len(words), 1) for kind, named in WORDS.items()}
    return Measures(float(len(words)), **shares)


def scores(traces: Mapping[int, str]) -> dict[int, float]:
    """The weighted sum of each trace's measures, every one of them divided by the largest of all traces: in [0, 1]."""
    if not traces:
        return {}
    table = np.array([measures(trace) for trace in traces.values()])
    largest = table.max(axis=0)
    scaled = table / np.where(largest > 0, largest, 1.0)
    return dict(zip(traces, (scaled @ np.array([WEIGHTS[name] for name in Measures._fields])).tolist(), strict=True))


def right_tries(value: Any, tries: int) -> int:
    """How many of `tries` were right: a count, or a list of true and false whose first `tries` are taken."""
    outcomes = value if isinstance(value, list) else None
    if outcomes is not None and len(outcomes) >= tries and all(x in (0, 1) for x in outcomes):
        return sum(map(int, outcomes[:tries]))
    if outcomes is None and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= tries:
        return value
    raise ValueError(f"how many of {tries} tries were right, or a list of at least {tries} times true or false")


def window(pool: Pool, rows: Sequence[int], plan: LIMO) -> tuple[list[int], list[Stage]]:
    """The rows whose problem the small model never solves and the strong one now and then, and the two stages."""

    def solved(row: int) -> str:
        right = pool.value("small", row, lambda value: right_tries(value, plan.small_tries))
        return "solved by the small model" if right else ""

    def beyond(row: int) -> str:
        right = pool.value("strong", row, lambda value: right_tries(value, plan.strong_tries))
        if plan.least <= right <= plan.most:
            return ""
        return f"the strong model is right in {'fewer' if right < plan.least else 'more'} of {plan.strong_tries} tries"

    left, easy = sift(f"unsolved in {plan.small_tries} tries", rows, solved)
    left, outside = sift(f"solved {plan.least} to {plan.most} times of {plan.strong_tries}", left, beyond)
    return left, [easy, outside]


def limo(pool: Pool, rows: Sequence[int], plan: LIMO) -> Selection:
    """Chooses by LIMO's rule among rows with these roles: question, trace, small, strong (right tries of each model).

    Equal scores are ordered by the rows themselves. Raises ValueError where fewer problems are left than asked for.
    """
    left, stages = window(pool, rows, plan)
    score = scores(pool.values("trace", left, text))
    best: dict[str, int] = {}
    for row in sorted(pool.in_own_order(left), key=lambda row: score[row], reverse=True):
        best.setdefault(pool.value("question", row, text), row)
    left, others = keep("best trace", left, best.values(), "another trace of the problem scores more")
    check_number(plan.number, left, "problems", [*stages, others])
    left, rest = keep("highest scores", left, [*best.values()][: plan.number], "a lower score")
    notes = [f"scores: {min(score[row] for row in left):.3f} to {max(score[row] for row in left):.3f}"]
    return selection(pool, left, [*stages, others, rest], notes)
