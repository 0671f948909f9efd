"""A source whose batches come from the model: rollouts, dealt into updates, sampled in time or one ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.lm import Params
from rl.batch import RolloutRows, from_tree, in_order, take, to_tree
from rl.rollout import RolloutBatch, RolloutWorker
from rl.rules import RolloutRules
from train.state import step_key

KNOWN = ("stats", "samples", "step", "accuracies", "flops")  # of a rollout, JSON-able
ORDER = 3  # folded into an epoch's key for the order of its rows


class RolloutSource:
    """`next` gives the rows of one update; every `epochs` x `minibatches` of them come from one rollout.

    With `overlap` the rollout after next's is sampled in a thread while this one is learnt from, hence by a model that
    is one rollout behind: `rollout/staleness` counts the updates between. Its log-probs are those it was sampled with.
    """

    def __init__(
        self,
        worker: RolloutWorker,
        rules: RolloutRules,
        *,
        seed: int,
        steps: int | None = None,
        log: Callable[[int, Mapping[str, float]], None] = lambda step, accuracies: None,
    ) -> None:
        """`steps`: updates of the whole run, after which nothing is sampled ahead; `log`: told of every rollout that
        comes into use, by its first step, how accurate each example was.
        """
        self.worker, self._rules, self._seed, self._steps = worker, rules, seed, steps
        self._uses, self._log = rules.epochs * rules.minibatches, log
        self._thread = ThreadPoolExecutor(1, "rollout") if rules.overlap else None
        self._ahead: Future[RolloutBatch] | None = None
        self._rolled: RolloutBatch | None = None
        self._waiting: dict[str, dict[str, Any]] = {}
        self._stats: dict[str, float] = {}
        self._flops = 0

    def next(self, params: Params, step: int) -> RolloutRows:
        """The rows of one update, of a new rollout or of the last."""
        place = step % self._uses
        if place == 0:
            self._rolled = self._fetch(params, step)
            self._log(step, self._rolled.accuracies)
            self._stats, self._flops = dict(self._rolled.stats), self._rolled.flops
            if self._rules.overlap:
                self._stats["rollout/staleness"] = float(step - self._rolled.step)
        elif self._rolled is None:
            raise ValueError(
                f"step {step} is update {place + 1} of a rollout that is not here: resume from a checkpoint"
            )
        else:
            self._stats, self._flops = {"rollout/update": float(place)}, 0
        rolled, rules = self._rolled, self._rules
        rows = rows_of_update(rolled.batch.rows, rules.minibatches, self._seed, step)
        if rules.ordered:
            depth = None if rolled.depth is None else rolled.depth[rows]
            rows = rows[in_order(rolled.lengths[rows], rolled.advantages[rows], depth)]
        return rolled.batch if np.array_equal(rows, np.arange(rolled.batch.rows)) else take(rolled.batch, rows)

    def state(self) -> dict[str, Any]:
        """The position of the worker, after any rollout under way, and what is known of rollouts that are kept."""
        kept = {name: {key: getattr(rolled, key) for key in KNOWN} for name, rolled in self._kept().items()}
        return {**self.worker.state(), **({"kept": kept} if kept else {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position; what `arrays` gave completes it."""
        state = dict(state)
        self._waiting = dict(state.pop("kept", {}))
        self.worker.restore(state)

    def arrays(self) -> dict[str, Any]:
        """The arrays that a resumed run cannot make again: a renewed reference, rollouts that are not used up."""
        # First the rollouts: the one under way may renew the reference.
        arrays: dict[str, Any] = {name: to_tree(rolled.batch) for name, rolled in self._kept().items()}
        return arrays | self.worker.arrays()

    def restore_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Takes back what `arrays` gave, after `restore`."""
        self.worker.restore_arrays(arrays)
        by_task = self._rules.depth == "task"
        rolled = {name: _restored(from_tree(arrays[name]), known, by_task) for name, known in self._waiting.items()}
        self._rolled = rolled.get("rollout")
        if "ahead" in rolled:
            self._ahead = Future()
            self._ahead.set_result(rolled["ahead"])

    def stats(self) -> dict[str, float]:
        """Metrics of the last batch's rollout when it is new, under TRL's names where it has one."""
        return self._stats

    def sampled(self) -> int:
        """The FLOPs of the last batch's rollout when it is new."""
        return self._flops

    def samples(self) -> list[dict[str, Any]]:
        """The last rollout as text, one record per sample."""
        return self._rolled.samples if self._rolled else []

    def _fetch(self, params: Params, step: int) -> RolloutBatch:
        if self._thread is None:
            return self.worker(params, step)
        ready = self._ahead.result() if self._ahead else self.worker(params, step)
        self._ahead = None
        if self._steps is None or step + self._uses < self._steps:
            # The step that follows donates its parameters.
            copy = jax.tree.map(jnp.copy, params)
            self._ahead = self._thread.submit(self.worker, copy, step + self._uses, step)
        return ready

    def _kept(self) -> dict[str, RolloutBatch]:
        """The rollout in use where it serves further updates, and the one sampled ahead, once it is there."""
        kept = {"rollout": self._rolled} if self._rolled and self._uses > 1 else {}
        return kept | ({"ahead": self._ahead.result()} if self._ahead else {})


def _restored(batch: RolloutRows, known: Mapping[str, Any], by_task: bool) -> RolloutBatch:
    """A rollout from its arrays and what is `KNOWN` of it."""
    depth = batch.depth if by_task else None
    return RolloutBatch(batch=batch, lengths=batch.lengths, advantages=batch.advantages, depth=depth, **known)


def rows_of_update(rows: int, minibatches: int, seed: int, step: int) -> np.ndarray:
    """The numbers of an update's rows: all, or this step's share of them in an order drawn for each epoch."""
    if minibatches == 1:
        return np.arange(rows)
    epoch, part = divmod(step, minibatches)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(step_key(seed, epoch), ORDER), rows))
    return order.reshape(minibatches, -1)[part]
