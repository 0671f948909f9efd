"""What two sets of texts have in common: whole texts, all but case and punctuation, and runs of words.

Decontamination by 8 words is that of s1K (2501.19393, data/decontaminate_util.py): lower case, white space as
one blank, and one shared run of words is enough. A text of fewer words, which has no such run, is compared as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from data.select.pool import Stage

NGRAM = 8


class Overlap(NamedTuple):
    """The rows of a pool that share something with a test set, each with what and with which row; and those rows."""

    rows: dict[int, tuple[str, int]]
    tests: frozenset[int]


def exact(text: str) -> set[str]:
    """The text without white space at its ends, of an empty one nothing."""
    return {text.strip()} - {""}


def letters(text: str) -> set[str]:
    """The letters and digits of a text in lower case, joined; nothing where it has none."""
    return {"".join(char for char in text.lower() if char.isalnum())} - {""}


def grams(text: str, size: int = NGRAM) -> set[str]:
    """Every run of `size` words of a text in lower case; of a shorter text the whole, of an empty one nothing."""
    words = text.lower().split()
    if not words:
        return set()
    return {" ".join(words[start : start + size]) for start in range(max(len(words) - size, 0) + 1)}


def overlap(
    texts: Mapping[int, str], tests: Mapping[int, str], parts: Callable[[str], Iterable[str]] = grams
) -> Overlap:
    """The rows whose text has a part that a test's text has, too; a row's first such part by the alphabet is told."""
    places: dict[str, list[int]] = {}
    for number, text in tests.items():
        for part in parts(text):
            places.setdefault(part, []).append(number)
    rows, touched = dict[int, tuple[str, int]](), set[int]()
    for row, text in texts.items():
        shared = sorted(part for part in parts(text) if part in places)
        if shared:
            rows[row] = (shared[0], places[shared[0]][0])
            touched.update(number for part in shared for number in places[part])
    return Overlap(rows, frozenset(touched))


def contamination(texts: Mapping[int, str], tests: Mapping[int, str], size: int = NGRAM) -> dict[str, Overlap]:
    """The overlap by exact text, by letters and digits and by runs of `size` words; empty texts are in no overlap."""
    return {
        "exact text": overlap(texts, tests, exact),
        "letters and digits": overlap(texts, tests, letters),
        f"{size} words": overlap(texts, tests, lambda text: grams(text, size)),
    }


def decontaminate(
    texts: Mapping[int, str], sets: Mapping[str, Mapping[int, str]], size: int = NGRAM
) -> tuple[list[int], list[Stage]]:
    """The rows that share no run of `size` words with any of the named test sets, nor all letters and digits.

    A stage for each set. The second test is ours: marks between words may hide a copy from the first.
    """
    left, stages = dict(texts), []
    for name, tests in sets.items():
        reasons, details = dict[int, str](), dict[int, str]()
        same, runs = overlap(left, tests, letters).rows, overlap(left, tests, lambda text: grams(text, size)).rows
        for row, (_, number) in same.items():
            reasons[row], details[row] = f"but for marks between letters in {name}, too", f"number {number + 1} there"
        for row, (part, number) in runs.items():
            reasons[row] = f"{size} words in a row are in {name}, too"
            details[row] = f"{part!r} is in number {number + 1} there"
        stages.append(Stage(f"against {name}", len(left), reasons, details))
        left = {row: text for row, text in left.items() if row not in reasons}
    return list(left), stages
