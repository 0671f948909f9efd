"""Examples on their way into a stream: encoded, measured before the first step, and refused or counted if too long.

What does not fit is to be found when a source is built, not at the step that meets it. Of examples that lie in files,
all are encoded, or the MEASURED with the longest texts; of those that are made on demand, without end for all we know,
DRAWN at even distances. A tokenizer takes .1 ms or so for an example of some hundred tokens: two seconds at most.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.sources.examples import Example, Generated

MEASURED = 16384
DRAWN = 1024
QUOTED = 60  # characters of an example that an error shows


class Length(NamedTuple):
    """So many tokens where at most `limit` fit (None: any number); `what` says so."""

    tokens: int
    limit: int | None
    what: str

    @property
    def fits(self) -> bool:
        """Whether they do."""
        return self.limit is None or self.tokens <= self.limit


def place_of(split: str, number: int) -> str:
    """Where an example stands: its number in the split, or its line in the file that takes a split's place."""
    return f"{split}, line {number + 1}," if split.endswith(".jsonl") else f"example {number}"


@dataclass(frozen=True)
class Reading:
    """The examples of a split and what becomes of them.

    `encode`: number of an example -> its element and length; `text`: an example -> what is encoded of it; `drops`:
    whether those too long are left out; `remedy`: what to do about them otherwise, `{tokens}` being what is needed.
    """

    examples: Sequence[Example]
    encode: Callable[[int], tuple[dict[str, Any], Length]]
    text: Callable[[Example], str]
    drops: bool
    remedy: str

    def measured(self) -> Sequence[int]:
        """The numbers of the examples that `check` encodes."""
        size = len(self.examples)
        if isinstance(self.examples, Generated):
            return range(0, size, -(-size // DRAWN))
        if size <= MEASURED:
            return range(size)
        return heapq.nlargest(MEASURED, range(size), key=lambda n: len(self.text(self.examples[n]).encode()))

    def check(self) -> None:
        """Raises ValueError that names the longest of the examples that do not fit, unless those are dropped."""
        if self.drops:
            return
        numbers = self.measured()
        lengths = ((n, self.encode(n)[1]) for n in numbers)
        wrong = [(found.tokens, -n, found) for n, found in lengths if not found.fits]
        if wrong:
            _, n, found = max(wrong)
            count = f"{len(wrong)} of {len(numbers)} examples looked at do not fit, and this is the longest"
            raise ValueError(f"{self._said(-n, found)}. {count}: {self.remedy.format(tokens=found.tokens)}")

    def take(self, dropped: "Dropped", place: int, number: int) -> dict[str, Any] | None:
        """The element of an example at a `place` in the stream, or None where it is dropped.

        Its `dropped` [1] tells how many were right before it. ValueError for one that does not fit.
        """
        element, found = self.encode(number)
        if found.fits:
            return element | {"dropped": np.array([dropped.keep(place)], np.int32)}
        if self.drops:
            dropped.drop(place, found.what)
            return None
        raise ValueError(
            f"{self._said(number, found)}. It is not among the {len(self.measured())} of {len(self.examples)} examples"
            f" that were looked at before the first step: {self.remedy.format(tokens=found.tokens)}. A run with other"
            " settings is a new one, which goes on from this one by init_from"
        )

    def _said(self, number: int, found: Length) -> str:
        return f"{found.what}; it begins {self.text(self.examples[number])[:QUOTED]!r}"


class Dropped:
    """Counts the examples left out of a stream since the last that was used; whoever reads it does so in order."""

    def __init__(self, size: int) -> None:
        """`size`: examples of an epoch."""
        self._size, self._count, self._following = size, 0, 0

    def drop(self, place: int, reason: str) -> None:
        """Counts the one at `place`; ValueError once a whole epoch was dropped."""
        self._go_to(place)
        self._count += 1
        if self._count >= self._size:
            raise ValueError(f"every one of {self._size} examples was dropped; the last: {reason}")

    def keep(self, place: int) -> int:
        """How many were dropped right before the one at `place`, which is used."""
        self._go_to(place)
        found, self._count = self._count, 0
        return found

    def _go_to(self, place: int) -> None:
        # A stream that was moved goes on behind an example that was used.
        self._count = self._count if place == self._following else 0
        self._following = place + 1
