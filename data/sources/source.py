"""An endless, resumable source of batches, and the plumbing under all sources: shuffles, shares of hosts, prefetch.

The stream is one endless sequence of shuffled epochs; host h of n takes its elements h, h + n, h + 2n, ...,
so that the hosts' shares are disjoint and cover every epoch whatever its length.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from grain import experimental

FOREVER = 2**48  # elements; without a number grain's length overflows once they are batched
NOTHING = {"read": 0, "dropped": 0, "truncated": 0}


class Source:
    """An endless iterator of batches with a JSON-able state."""

    def __init__(self, batches: grain.IterDataset, identity: dict[str, Any], counts: Sequence[str] = ()) -> None:
        """`batches`: pairs of a batch and its counts; `identity`: what must be equal for a state to fit; `counts`:
        the names of what is counted besides NOTHING.
        """
        self._held = [iter(batches)]
        self._identity = identity
        self._counts = NOTHING | dict.fromkeys(counts, 0)
        # An iterator with a thread must be gone before the interpreter takes its modules apart.
        weakref.finalize(self, _release, self._held)

    @property
    def _iterator(self) -> grain.DatasetIterator:
        return self._held[0]

    def next(self, params: Any = None, step: int | None = None) -> Any:
        """Returns the next batch; `params` and `step` are there for sources that need them."""
        batch, counts = next(self._iterator)
        self._counts = {name: count + counts[name] for name, count in self._counts.items()}
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the JSON-able position after the last batch."""
        position, counts = self._iterator.get_state(), dict(self._counts)
        return {"iterator": position, "identity": dict(self._identity), "counts": counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; ValueError when it was taken from a source that makes other batches."""
        saved = dict(state["identity"])
        different = [key for key in self._identity if saved.get(key) != self._identity[key]]
        if different:
            pairs = ", ".join(f"{key}: saved {saved.get(key)!r}, now {self._identity[key]!r}" for key in different)
            raise ValueError(f"this state belongs to another input pipeline ({pairs}); restore with the same settings")
        self._iterator.set_state(state["iterator"])
        # States of earlier versions hold no counts: such a run counts from where it is resumed.
        self._counts = dict.fromkeys(self._counts, 0) | state.get("counts", {})

    def stats(self) -> dict[str, int]:
        """Returns how many examples all batches up to the last took: `read`, the `dropped` among them, and `truncated`.

        They are those of all processes, but for the truncated where each process reads its own rows alone.
        """
        return dict(self._counts)


def _release(held: list[grain.DatasetIterator]) -> None:
    held.pop().close()


@dataclass(frozen=True)
class Share:
    """What process `index` of `count` has of a batch: every count-th row.

    Each has as many rows, so that a position is a number of batches, the same in all processes and for any number of
    them. Where examples may be dropped or packed, a process has to read the others' as well to know which are its own.
    """

    index: int
    count: int

    def of_elements(self, data: grain.MapDataset) -> grain.MapDataset:
        """Of a data set in which every element is a row."""
        return data[self.index :: self.count]

    def of_rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of arrays with a leading axis of rows."""
        return {name: rows[self.index :: self.count] for name, rows in batch.items()}

    def of_list(self, batch: list[Any]) -> list[Any]:
        """Of a list of rows."""
        return batch[self.index :: self.count]


def shuffled_numbers(split: str, size: int, seed: int) -> grain.MapDataset:
    """The numbers of a split's examples, every epoch in an order of its own; ValueError where there are none."""
    check_not_empty(split, size)
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat(FOREVER // size)


def in_order(data: grain.MapDataset) -> grain.IterDataset:
    """The data set as an iterator without threads."""
    # No reader threads: making an example is cheaper than handing it over, and one thread keeps the order of
    # effects.
    return data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def prefetched(batches: grain.IterDataset, prefetch: int) -> grain.IterDataset:
    """The same batches, `prefetch` of them made ahead by a thread."""
    if prefetch == 0:
        return batches
    return experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)


def check_not_empty(split: str, size: int) -> None:
    """Raises ValueError for a split without examples."""
    if size == 0:
        raise ValueError(f"split {split!r} has no examples; check the task's path and options")
