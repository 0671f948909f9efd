"""Gradients of a batch in micro-batches, and what of that work may be left out without changing the result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from data.sources.batch import Batch
from model.lm import Params
from train.objectives.losses import Objective
from train.objectives.metrics import Metrics, merge, nothing
from train.sparse_tables import SparseTables, join
from train.state import partition

Run = Callable[[Batch, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """How the gradient of a batch is computed: in micro-batches of so many rows (None: at once), and what of the work
    its objective allows to leave out; by default nothing.

    `read(params, batch.shared, n)` reads what all rows share once for all n micro-batches, which get that instead.
    `no_gradient(part)` tells a micro-batch without a gradient, which is then only measured. `widths`, rising, are
    numbers of columns, of which a micro-batch uses the least that holds `length(part)`, cut by
    `truncate(part, columns)`. Each width is a program of its own inside the step: they cost compile time.
    """

    micro_batch: int | None = None
    read: Callable[[Params, Any, int], Any] | None = None
    no_gradient: Callable[[Any], jax.Array] | None = None
    widths: tuple[int, ...] = ()
    length: Callable[[Any], jax.Array] = lambda part: jnp.int32(0)
    truncate: Callable[[Any, int], Any] = lambda part, columns: part

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

    def __add__(self, other: Accumulated) -> Accumulated:
        """That of both batches as one; raises ValueError for gradients of sparse tables, which are of one batch."""
        if self.taps or other.taps:
            raise ValueError("sparse gradients are of one batch: train the tables by dense gradients")
        summed = jax.tree.map(jnp.add, *(dataclasses.replace(x, metrics={}) for x in (self, other)))
        return dataclasses.replace(summed, metrics=merge(self.metrics, other.metrics))


def accumulate(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: jax.Array,
    rows: SparseTables | None = None,
    plan: UpdatePlan = WHOLE,
) -> Accumulated:
    """Runs the objective and its gradient over micro-batches. Raises if the rows of the batch do not divide evenly."""
    weights, tables, by_rule = partition(params, rows)
    fixed = join(tables, by_rule)
    shared, (n, parts) = batch.shared, in_parts(batch.replace(shared=None), plan.micro_batch)
    reader = None
    if plan.read is not None:
        read = plan.read
        # One pass over what is shared, whose gradient waits until all micro-batches have added theirs.
        reader = Reader.of(lambda weights: read(join(weights, fixed), shared, n), weights)

    def whole_part(part: Batch, read: list[jax.Array]) -> Batch:
        return part.replace(shared=shared if reader is None else reader.result(read))

    def loss(weights: Params, taps: Params, read: list[jax.Array], part: Batch, key: jax.Array) -> tuple[Any, Any]:
        whole = join(weights, fixed)
        total, count, metrics = objective({**whole, "taps": taps} if taps else whole, whole_part(part, read), key)
        return total, (count, metrics)

    start = [] if reader is None else reader.floats

    def learn(part: Batch, key: jax.Array) -> Accumulated:
        taps = rows.taps(tables, whole_part(part, start).forward_tokens) if rows else {}
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


def in_parts(batch: Any, size: int | None) -> tuple[int, Any]:
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
    measure: Callable[[Params, Any], tuple[jax.Array, ...]],
    params: Params,
    batch: Batch,
    plan: UpdatePlan = WHOLE,
) -> tuple[jax.Array, ...]:
    """Arrays [N, T] that `measure` gives of the rows, micro-batch by micro-batch; 0 in columns that were left out."""
    columns, (n, parts) = batch.columns, in_parts(batch.replace(shared=None), plan.micro_batch)
    shared = batch.shared if plan.read is None else plan.read(params, batch.shared, n)

    def one(part: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        found = measure(params, part.replace(shared=shared))
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
    start = dataclasses.replace(empty, metrics=nothing(shapes.metrics))
    summed, taps = jax.lax.scan(add, start, (parts, jnp.arange(n)))
    return dataclasses.replace(summed, taps=taps)
