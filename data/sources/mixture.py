"""Streams of documents mixed by weight, and cut into rows, as grain data sets whose states resume at the very token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

Row = dict[str, np.ndarray]


class Mixture(grain.IterDataset):
    """At each turn the source that lags most behind its weight gives its next document.

    So after any number of turns a source's share, in tokens or in documents, is that of its weight to within one
    document, without a draw. `by`: the unit. A source that has ended is left out; ValueError when all have.
    """

    def __init__(self, parents: Sequence[grain.IterDataset], names: Sequence[str], weights: Sequence[float], by: str):
        """Sources of weight 0 give nothing."""
        super().__init__(list(parents))
        self._names, self._weights, self._by = tuple(names), tuple(weights), by

    def __iter__(self) -> grain.DatasetIterator:
        """From the beginning."""
        iterators = [iter(parent) for parent in self._parents]
        return _MixtureIterator(iterators, self._names, np.array(self._weights, np.float64), self._by)


class _MixtureIterator(grain.DatasetIterator):
    def __init__(self, parents: Sequence[grain.DatasetIterator], names: Sequence[str], weights: np.ndarray, by: str):
        super().__init__(parents)
        self._names, self._weights, self._by = names, weights, by
        self._taken, self._ended = np.zeros(len(names), np.int64), ~(weights > 0)

    def __next__(self) -> Any:
        while not self._ended.all():
            lag = np.where(self._ended, np.inf, self._taken / np.where(self._weights > 0, self._weights, 1.0))
            chosen = int(lag.argmin())
            try:
                element = next(self._parents[chosen])
            except StopIteration:
                self._ended[chosen] = True
                continue
            self._taken[chosen] += len(element["tokens"]) if self._by == "tokens" else 1
            return element
        read = ", ".join(f"{name} {count}" for name, count in zip(self._names, self._taken.tolist(), strict=True))
        raise ValueError(
            f"all sources of the mixture have been read as often as their epochs allow ({self._by}: {read}): raise"
            " corpus.sources.<name>.epochs, or train fewer steps"
        )

    def get_state(self) -> dict[str, Any]:
        return {
            "parents": [parent.get_state() for parent in self._parents],
            "taken": self._taken.tolist(),
            "ended": self._ended.tolist(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        for parent, inner in zip(self._parents, state["parents"], strict=True):
            parent.set_state(inner)
        self._taken, self._ended = np.array(state["taken"], np.int64), np.array(state["ended"], bool)


class Concatenated(grain.IterDataset):
    """Rows of `length` tokens cut from one stream of documents; what is left of a document begins the next row.

    Rows are full: `tokens`, `positions`, `segments`, `source` [length] int32, `mask` [length] of ones; segments count
    from 1 within a row, and positions restart with each. `change(tokens of a piece, rng) -> tokens`: what becomes of
    every piece of a row (None: nothing), the row being cut or padded to its length again.
    """

    def __init__(
        self,
        documents: grain.IterDataset,
        length: int,
        pad_id: int,
        change: Callable[[list[int], np.random.Generator], list[int]] | None = None,
        seed: int = 0,
    ):
        """`documents`: {"tokens" [n], "source" [n]}."""
        super().__init__(documents)
        self._made = (length, pad_id, change, seed)

    def __iter__(self) -> grain.DatasetIterator:
        """From the beginning."""
        return _ConcatenatedIterator(iter(self._parent), *self._made)


class _ConcatenatedIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, length: int, pad_id: int, change: Any, seed: int):
        super().__init__(parent)
        self._length, self._pad, self._change, self._seed = length, pad_id, change, seed
        self._rows, self._rest = 0, list[int]()
        self._source = 0

    def __next__(self) -> Row:
        pieces, filled = list[tuple[list[int], int]](), 0
        while filled < self._length:
            if not self._rest:
                document = next(self._parent)
                self._rest, self._source = document["tokens"].tolist(), int(document["source"][0])
            piece, self._rest = self._rest[: self._length - filled], self._rest[self._length - filled :]
            pieces.append((piece, self._source))
            filled += len(piece)
        if self._change is not None:
            rng = np.random.default_rng((self._seed, self._rows))
            pieces = [(self._change(piece, rng), source) for piece, source in pieces]
        self._rows += 1
        return laid_out(pieces, self._length, self._pad)

    def get_state(self) -> dict[str, Any]:
        rest = {"tokens": self._rest, "source": self._source}
        return {"parent": self._parent.get_state(), "rest": rest, "rows": self._rows}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._rest, self._source = list(state["rest"]["tokens"]), state["rest"]["source"]
        self._rows = state["rows"]


def laid_out(pieces: Sequence[tuple[Sequence[int], int]], length: int, pad_id: int) -> Row:
    """Pieces of documents, each with its source, one after the other in a row of `length`; what is beyond is cut."""
    row: dict[str, Any] = {
        "tokens": np.full(length, pad_id, np.int32),
        **{name: np.zeros(length, np.int32) for name in ("positions", "segments", "source")},
        "mask": np.zeros(length, np.float32),
    }
    start = 0
    for number, (piece, source) in enumerate(pieces, start=1):
        kept = piece[: length - start]
        inside = slice(start, start + len(kept))
        row["tokens"][inside], row["positions"][inside] = kept, np.arange(len(kept))
        row["segments"][inside], row["source"][inside], row["mask"][inside] = number, source, 1.0
        start += len(kept)
    return row
