"""Fewer cases than all combinations: enough that any two values that can meet do meet."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case", bound=tuple)  # type: ignore[type-arg]


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Cases in which every pair of values, of any two places, occurs that occurs in `cases`; all with SAGAX_FULL=1.

    Chosen one by one, each with the most pairs that are still missing; the first of several.
    """
    if os.environ.get("SAGAX_FULL"):
        return list(cases)
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set[tuple[object, ...]]().union(*pairs.values()), list[Case]()
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen
