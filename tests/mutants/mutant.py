"""What a break is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One break of one file: `old` occurs in it exactly once; `tests`, separated by spaces, are pytest's arguments."""

    file: str
    old: str
    new: str
    tests: str
