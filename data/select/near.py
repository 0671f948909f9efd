"""Near-duplicates: texts that share most of their runs of words, found by MinHash (the library datasketch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.select.overlap import grams

SHINGLE = 5  # words
THRESHOLD = 0.8
PERMUTATIONS = 128
# How much false positives and negatives count when bands are chosen: the former are looked at again.
COSTS = (0.1, 0.9)
SEED = 1


def library() -> Any:
    """The module datasketch; ValueError that names the extra where it is not installed."""
    try:
        import datasketch
    except ImportError as error:
        raise ValueError(
            "near-duplicates need the library datasketch: pip install -c constraints.txt -e '.[select]'"
        ) from error
    return datasketch


def similarity(left: set[str], right: set[str]) -> float:
    """The share of two sets' members that both have (Jaccard), 1 for two empty sets."""
    return len(left & right) / len(left | right) if left or right else 1.0


def near_duplicates(
    texts: Mapping[int, str],
    order: Sequence[int],
    tests: Mapping[int, str] | None = None,
    threshold: float = THRESHOLD,
    shingle: int = SHINGLE,
) -> dict[int, tuple[str, int, float]]:
    """The rows that are too like another: row -> ("row" or "test", the other's number, their similarity).

    Rows are taken in `order`; one is dropped where the similarity of its shingles, runs of `shingle` words, to those of
    a test or of a row that was kept is `threshold` or more. MinHash proposes whom to compare and may overlook a pair
    near the threshold; similarities are exact. Empty texts are like none.
    """
    sketch = library()
    near = sketch.MinHashLSH(threshold, PERMUTATIONS, weights=COSTS)
    known: dict[tuple[str, int], set[str]] = {}
    found: dict[int, tuple[str, int, float]] = {}
    entries = [("test", number, text) for number, text in (tests or {}).items()]
    for kind, number, text in [*entries, *(("row", row, texts[row]) for row in order)]:
        parts = grams(text, shingle)
        if not parts:
            continue
        hashed = sketch.MinHash(PERMUTATIONS, SEED)
        hashed.update_batch([part.encode() for part in sorted(parts)])
        if kind == "row":
            alike = [(similarity(parts, known[other]), other) for other in near.query(hashed)]
            most, other = max(alike, key=lambda pair: (pair[0], pair[1][0], -pair[1][1]), default=(0.0, ("", 0)))
            if most >= threshold:
                found[number] = (*other, most)
                continue
        known[kind, number] = parts
        near.insert((kind, number), hashed)
    return found
