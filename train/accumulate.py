"""Gradients of a batch in micro-batches, and what of that work may be left out without changing the result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from model.lm import Params
from train.objectives.losses import Batch, Metrics, Objective
from train.sparse_tables import SparseTables, join
from train.state import partition

Run = Callable[[Batch, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """What of a step an objective allows to leave out; by default nothing.

    `read(params, batch["prompt"], n)` reads the prompts once for all n micro-batches, which find it under "prefix".
    `no_gradient(part)` tells a micro-batch without a gradient, which is then only measured. `widths`, rising, are
    numbers of columns, of which a micro-batch uses the least that holds `length(part)`, cut by
    `truncate(part, columns)`. Each width is a program of its own inside the step: they cost compile time.
    """

    read: Callable[[Params, Batch, int], Any] | None = None
    no_gradient: Callable[[Batch], jax.Array] | None = None
    widths: tuple[int, ...] = ()
    length: Callable[[Batch], jax.Array] = lambda part: jnp.int32(0)
    truncate: Callable[[Batch, int], Batch] = lambda part, columns: part

    def run(self, learn: Run, measure: Run, part: Batch, key: jax.Array) -> Any:
        """`learn` of the part, cut to its width, or `measure` where it is no_gradient."""
        runs = [learn, measure] if self.no_gradient else [learn]
        branches = [self._at(run, width) for run in runs for width in self.widths or (None,)]
        chosen = self.no_gradient(part) * max(len(self.widths), 1) if self.no_gradient else jnp.int32(0)
        if self.widths:
            chosen += jnp.searchsorted(jnp.asarray(self.widths[:-1], jnp.int32), self.length(part))
        return jax.lax.switch(chosen, branches, part, key) if len(branches) > 1 else learn(part, key)

    def _at(self, run: Run, width: int | None) -> Run:
        return run if width is None else lambda part, key: run(self.truncate(part, width), key)


WHOLE = UpdatePlan()


@flax.struct.dataclass
class Accumulated:
    """Sums over micro-batches: of the objective, its denominator, its metrics and the gradient of the total, in the
    parameters and in what was `read`; and the taps' gradients, stacked [micro-batches, ...].
    """

    total: jax.Array
    count: jax.Array
    metrics: Metrics
    gradients: Params
    read: list[jax.Array]
    taps: Params


def accumulate(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: jax.Array,
    micro_batch: int | None = None,
    rows: SparseTables | None = None,
    plan: UpdatePlan = WHOLE,
) -> Accumulated:
    """Runs the objective and its gradient over micro-batches. Raises if the rows of the batch do not divide evenly."""
    weights, tables, by_rule = partition(params, rows)
    fixed = join(tables, by_rule)
    n, parts = in_parts({name: x for name, x in batch.items() if name != "prompt"}, micro_batch)
    reader = None
    if "prompt" in batch:
        if plan.read is None:
            raise ValueError("prompts stand apart from the rows of this batch: give plan that say how to read them")
        read = plan.read
        # One pass over the prompts, whose gradient waits until all micro-batches have added theirs.
        reader = Reader.of(lambda weights: read(join(weights, fixed), batch["prompt"], n), weights)

    def loss(weights: Params, taps: Params, found: list[jax.Array], part: Batch, key: jax.Array) -> tuple[Any, Any]:
        whole = join(weights, fixed)
        given = part if reader is None else {**part, "prefix": reader.result(found)}
        total, count, metrics = objective({**whole, "taps": taps} if taps else whole, given, key)
        return total, (count, metrics)

    start = [] if reader is None else reader.floats

    def learn(part: Batch, key: jax.Array) -> Accumulated:
        taps = rows.taps(tables, part["tokens"].size) if rows else {}
        grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (total, (count, metrics)), (gradients, taps, read) = grad(weights, taps, start, part, key)
        return Accumulated(total, count, metrics, gradients, read, taps)

    def measure(part: Batch, key: jax.Array) -> Accumulated:
        total, (count, metrics) = loss(weights, {}, start, part, key)
        gradients, read = jax.tree.map(jnp.zeros_like, (weights, start))
        return Accumulated(total, count, metrics, gradients, read, {})

    found = _sum(functools.partial(plan.run, learn, measure), n, parts, key)
    if reader is None:
        return found
    gradients = jax.tree.map(jnp.add, found.gradients, reader.pull(found.read)[0])
    return dataclasses.replace(found, gradients=gradients, read=[])


def in_parts(batch: Batch, size: int | None) -> tuple[int, Batch]:
    """The number of micro-batches, and the batch in them: [n, size, ...]; a batch that is one stays [rows, ...]."""
    n_rows = jax.tree.leaves(batch)[0].shape[0]
    size = min(size or n_rows, n_rows)
    if n_rows % size:
        raise ValueError(
            f"a batch of {n_rows} rows cannot be cut into micro-batches of {size}; choose a divisor of {n_rows}"
        )
    if n_rows == size:
        return 1, batch
    n = n_rows // size
    return n, jax.tree.map(lambda x: x.reshape(n, size, *x.shape[1:]), batch)


def per_token(
    measure: Callable[[Params, Batch], tuple[jax.Array, ...]],
    params: Params,
    batch: Batch,
    micro_batch: int | None = None,
    plan: UpdatePlan = WHOLE,
) -> tuple[jax.Array, ...]:
    """Arrays [N, T] that `measure` gives of the rows, micro-batch by micro-batch; 0 in columns that were left out."""
    n, parts = in_parts({name: x for name, x in batch.items() if name != "prompt"}, micro_batch)
    read = {} if plan.read is None else {"prefix": plan.read(params, batch["prompt"], n)}
    columns = batch["old_logps"].shape[1]

    def one(part: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        found = measure(params, {**part, **read})
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, columns - x.shape[1]))), found)

    measured = dataclasses.replace(plan, no_gradient=None)
    run = functools.partial(measured.run, one, one, key=jax.random.key(0))  # unused
    found = run(parts) if n == 1 else jax.lax.map(run, parts)
    return jax.tree.map(lambda x: x.reshape(-1, columns), found)


@dataclasses.dataclass(frozen=True)
class Reader:
    """What was read, as the numbers that gradients go to and everything else; `pull` takes them to the weights."""

    floats: list[jax.Array]
    pull: Callable[[list[jax.Array]], tuple[Params]]
    whole: Any

    @classmethod
    def of(cls, read: Callable[[Params], Any], weights: Params) -> Reader:
        """Reads by `weights`."""

        def apart(weights: Params) -> tuple[list[jax.Array], Any]:
            whole = read(weights)
            return [x for x in jax.tree.leaves(whole) if _moves(x)], whole

        return cls(*jax.vjp(apart, weights, has_aux=True))

    def result(self, floats: list[jax.Array]) -> Any:
        """What was read, made of these numbers."""
        given = iter(floats)
        return jax.tree.map(lambda x: next(given) if _moves(x) else x, self.whole)


def _moves(x: jax.Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _sum(one: Callable[[Batch, jax.Array], Accumulated], n: int, parts: Batch, key: jax.Array) -> Accumulated:
    if n == 1:
        found = one(parts, key)
        return dataclasses.replace(found, taps=jax.tree.map(lambda x: x[None], found.taps))

    def add(carry: Accumulated, item: Any) -> tuple[Accumulated, Params]:
        part, i = item
        new = one(part, jax.random.fold_in(key, i))
        summed = jax.tree.map(jnp.add, *(dataclasses.replace(x, metrics={}, taps={}) for x in (carry, new)))
        return dataclasses.replace(summed, metrics=merge(carry.metrics, new.metrics)), new.taps

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), key)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dataclasses.replace(shapes, metrics={}, taps={}))
    start = dataclasses.replace(empty, metrics=_nothing(shapes.metrics))
    summed, taps = jax.lax.scan(add, start, (parts, jnp.arange(n)))
    return dataclasses.replace(summed, taps=taps)


def merge(left: Metrics, right: Metrics) -> Metrics:
    """Adds the (sum, count) pairs of two micro-batches; names ending in /max and /min keep the extreme."""
    rules: dict[str, Callable[..., Any]] = {"max": jnp.maximum, "min": jnp.minimum}
    return {k: jax.tree.map(rules.get(_kind(k), jnp.add), v, right[k]) for k, v in left.items()}


def _nothing(shapes: Metrics) -> Metrics:
    """The metrics of no rows, to which others are merged."""
    fill = {"max": -jnp.inf, "min": jnp.inf}
    return {
        name: jax.tree.map(lambda x, name=name: jnp.full(x.shape, fill.get(_kind(name), 0), x.dtype), value)
        for name, value in shapes.items()
    }


def _kind(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def finish(metrics: Metrics) -> Metrics:
    """Divides every (sum, count) pair; leaves extremes alone."""
    return {k: v[0] / jnp.maximum(v[1], 1e-8) if isinstance(v, tuple) else v for k, v in metrics.items()}
