"""Groups in flight: more than an update learns from, so that no rollout waits for the longest of its samples.

A rollout ends once enough groups have all their samples. The others go on in the next one, by the model of that time:
their first tokens keep the log-probs of the model that said them (partial rollouts: Kimi k1.5, 2501.12599, section
2.6.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.sources.source import Source
from infer.continuation import Continuation, continuation_of, empty_continuation
from infer.sampler import Rollout
from rl.experience import rows_of

Item = dict[str, Any]
ARRAYS = ("tokens", "logps", "lengths", "finished", "depth")


class PartialRollouts:
    """`groups` prompts are learnt from at a time, `extra` more are in flight, each with `samples` of `length`."""

    def __init__(self, prompts: Source, groups: int, extra: int, samples: int, length: int) -> None:
        """Nothing is in flight."""
        self._prompts, self._groups, self._extra = prompts, groups, extra
        self._samples, self._length = samples, length
        self._waiting: list[Item] = []
        self._items: list[Item] = []
        self._partial: Continuation | None = None

    def next(self) -> tuple[list[Item], Continuation]:
        """All that is in flight, partial groups first, then new prompts; and what their samples start from."""
        size = self._groups + self._extra
        while len(self._items) + len(self._waiting) < size:
            self._waiting += self._prompts.next()
        new = size - len(self._items)
        blank = empty_continuation(new * self._samples, self._length)
        before = blank if self._partial is None else _stacked(self._partial, blank)
        items = self._items + self._waiting[:new]
        self._waiting = self._waiting[new:]
        return items, before

    def retire(self, items: list[Item], rollout: Rollout) -> np.ndarray:
        """The numbers of the first groups that have all their samples; the others stay in flight."""
        assert rollout.partial is not None
        ready = np.flatnonzero(~rollout.partial.reshape(len(items), -1).any(1))[: self._groups]
        rest = np.setdiff1d(np.arange(len(items)), ready)
        rows, whole = rows_of(rest, self._samples), _arrays(continuation_of(rollout))
        self._items = [items[group] for group in rest]
        self._partial = Continuation(**{name: array[rows] for name, array in whole.items()})
        return ready

    def state(self) -> dict[str, Any]:
        """The prompts of partial groups and those that wait, JSON-able."""
        plain = lambda item: {**item, "tokens": [int(token) for token in item["tokens"]]}  # noqa: E731
        return {"partial": [plain(item) for item in self._items], "waiting": [plain(item) for item in self._waiting]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state; what `arrays` gave completes it."""
        self._items, self._waiting = list(state["partial"]), list(state["waiting"])

    def arrays(self) -> dict[str, np.ndarray]:
        """What partial samples have said."""
        return {} if self._partial is None else _arrays(self._partial)

    def restore_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Takes back what `arrays` gave."""
        kept = {name: np.asarray(arrays[name]) for name in ARRAYS if name in arrays}
        self._partial = Continuation(**kept) if kept else None


def _arrays(partial: Continuation) -> dict[str, np.ndarray]:
    """What there is to carry of partial samples; the depth is that of recurrent models alone."""
    return {name: getattr(partial, name) for name in ARRAYS if getattr(partial, name) is not None}


def _stacked(above: Continuation, below: Continuation) -> Continuation:
    """Two continuations below each other, the second an empty one."""
    blank = {name: np.zeros_like(below.tokens) for name in ARRAYS} | _arrays(below)
    return Continuation(**{name: np.concatenate([array, blank[name]]) for name, array in _arrays(above).items()})
