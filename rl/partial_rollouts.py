"""Groups in flight: more than an update learns from, so that no rollout waits for the longest of its samples.

A rollout ends once enough groups have all their samples. The others go on in the next one, by the model of that time:
their first tokens keep the log-probs of the model that said them (partial rollouts: Kimi k1.5, 2501.12599, section
2.6.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.sources.text import Source
from infer.partial import PartialSamples
from infer.sampler import Rollout
from rl.experience import rows_of

Item = dict[str, Any]
ARRAYS = ("tokens", "logps", "lengths", "finished")


class PartialRollouts:
    """`groups` prompts are learnt from at a time, `extra` more are in flight, each with `samples` of `length`."""

    def __init__(self, prompts: Source, groups: int, extra: int, samples: int, length: int) -> None:
        """Nothing has begun."""
        self._prompts, self._groups, self._extra = prompts, groups, extra
        self._samples, self._length = samples, length
        self._waiting: list[Item] = []
        self._items: list[Item] = []
        self._said: PartialSamples | None = None

    def next(self) -> tuple[list[Item], PartialSamples]:
        """All that is in flight: what has begun first, then new prompts; and what their samples have said."""
        size = self._groups + self._extra
        while len(self._items) + len(self._waiting) < size:
            self._waiting += self._prompts.next()
        new = size - len(self._items)
        blank = self._blank(new * self._samples)
        before = blank if self._said is None else _stacked(self._said, blank)
        items = self._items + self._waiting[:new]
        self._waiting = self._waiting[new:]
        return items, before

    def retire(self, items: list[Item], rollout: Rollout) -> np.ndarray:
        """The numbers of the first groups that have all their samples; the others stay in flight."""
        assert rollout.partial is not None
        ready = np.flatnonzero(~rollout.partial.reshape(len(items), -1).any(1))[: self._groups]
        rest = np.setdiff1d(np.arange(len(items)), ready)
        rows = rows_of(rest, self._samples)
        self._items = [items[group] for group in rest]
        self._said = PartialSamples(**{name: getattr(rollout, name)[rows] for name in ARRAYS})
        return ready

    def state(self) -> dict[str, Any]:
        """The prompts that have begun and those that wait, JSON-able."""
        plain = lambda item: {**item, "tokens": [int(token) for token in item["tokens"]]}  # noqa: E731
        return {"begun": [plain(item) for item in self._items], "waiting": [plain(item) for item in self._waiting]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state; what `arrays` gave completes it."""
        self._items, self._waiting = list(state["begun"]), list(state["waiting"])

    def arrays(self) -> dict[str, np.ndarray]:
        """What has been said in flight."""
        return {} if self._said is None else {name: getattr(self._said, name) for name in ARRAYS}

    def restore_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Takes back what `arrays` gave."""
        self._said = PartialSamples(**{name: np.asarray(arrays[name]) for name in ARRAYS}) if arrays else None

    def _blank(self, rows: int) -> PartialSamples:
        shape = (rows, self._length)
        nothing = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(rows, np.int32)
        return PartialSamples(*nothing, np.zeros(rows, bool))


def _stacked(above: PartialSamples, below: PartialSamples) -> PartialSamples:
    return PartialSamples(**{name: np.concatenate([getattr(above, name), getattr(below, name)]) for name in ARRAYS})
