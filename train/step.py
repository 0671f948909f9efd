"""The only jitted update: gradients of an objective, micro-batch by micro-batch, then clip, update and guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from model.lm import Params
from train.losses import Batch, Metrics, Objective
from train.optimizer import ema_update
from train.rows import RowTraining, join
from train.state import TrainState, partition, step_key

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Learn = Callable[[Params, dict[str, jax.Array]], tuple[Params, dict[str, jax.Array]]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | None = None,
    *,
    micro_batch: int | None = None,
    ema_decay: float = 0.0,
    learn: Learn | None = None,
    rows: RowTraining | None = None,
    jit: bool = True,
) -> Step:
    """Builds step(state, batch) -> (state, metrics), jitted with the state donated.

    The batch is cut into micro-batches of `micro_batch` rows (None: the whole batch) whose totals and counts are summed
    before the one division, so the result is that of the big batch. A non-finite loss or gradient leaves parameters and
    optimiser as they were and is counted. `learn(params["state"], sums)` then moves what is learnt by rule
    (model/rules.py), from what the layers reported over the whole batch; `rows` moves the rows of large tables
    (train/rows.py). Metrics come back as scalars, with `loss`, `grad_norm` (of the dense parameters), `skipped`, `bad`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(state.seed, state.step)
        found = accumulate(objective, state.params, batch, key, micro_batch, rows)
        total, count, metrics = found.total, jnp.maximum(found.count, 1e-8), found.metrics
        gradients = jax.tree.map(lambda g: (g / count).astype(g.dtype), found.gradients)
        norm = optax.tree.norm(gradients)
        fine = jnp.isfinite(norm) & jnp.isfinite(total)
        sums = metrics.pop("sums", {})
        by_rule, reports = learn(state.params.get("state", {}), sums) if learn and sums else ({}, {})
        if rows:
            fine &= rows.finite(found.taps)
            state = rows.apply(state, found.taps, count, fine)
        state = _guarded_update(state, optimizer, gradients, by_rule, fine, ema_decay, rows)
        metrics = {
            **finish(metrics),
            **reports,
            "loss": total / count,
            "grad_norm": norm,
            "skipped": state.skipped,
            "bad": state.bad,
        }
        return state, metrics

    if not jit:
        return step
    compiled = jax.jit(step, donate_argnums=(0,))
    return compiled if mesh is None else _within(mesh, compiled)


@flax.struct.dataclass
class Accumulated:
    """Sums over micro-batches: of the objective, its denominator, its metrics and the gradient of the total; and the
    taps' gradients, stacked [micro-batches, ...].
    """

    total: jax.Array
    count: jax.Array
    metrics: Metrics
    gradients: Params
    taps: Params


def accumulate(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: jax.Array,
    micro_batch: int | None,
    rows: RowTraining | None = None,
) -> Accumulated:
    """Runs the objective and its gradient over micro-batches. Raises if the rows of the batch do not divide evenly."""
    weights, tables, by_rule = partition(params, rows)
    fixed = join(tables, by_rule)

    def one(part: Batch, key: jax.Array) -> Accumulated:
        def total_first(weights: Params, taps: Params) -> tuple[jax.Array, Any]:
            whole = join(weights, fixed)
            total, count, metrics = objective({**whole, "taps": taps} if taps else whole, part, key)
            return total, (count, metrics)

        taps = rows.taps(tables, part["tokens"].size) if rows else {}
        grad = jax.value_and_grad(total_first, argnums=(0, 1), has_aux=True)
        (total, (count, metrics)), (gradients, taps) = grad(weights, taps)
        return Accumulated(total, count, metrics, gradients, jax.tree.map(lambda x: x[None], taps))

    n_rows = jax.tree.leaves(batch)[0].shape[0]
    size = min(micro_batch or n_rows, n_rows)
    if n_rows % size:
        raise ValueError(
            f"a batch of {n_rows} rows cannot be cut into micro-batches of {size}; choose a divisor of {n_rows}"
        )
    if n_rows == size:
        return one(batch, key)
    parts = jax.tree.map(lambda x: x.reshape(n_rows // size, size, *x.shape[1:]), batch)
    first = one(jax.tree.map(lambda x: x[0], parts), jax.random.fold_in(key, 0))

    def add(carry: Accumulated, item: Any) -> tuple[Accumulated, Params]:
        part, i = item
        new = one(part, jax.random.fold_in(key, i))
        gradients = jax.tree.map(jnp.add, carry.gradients, new.gradients)
        metrics = merge(carry.metrics, new.metrics)
        summed = Accumulated(carry.total + new.total, carry.count + new.count, metrics, gradients, {})
        return summed, jax.tree.map(lambda x: x[0], new.taps)

    rest = jax.tree.map(lambda x: x[1:], parts)
    numbers = jnp.arange(1, n_rows // size)
    summed, taps = jax.lax.scan(add, replace(first, taps={}), (rest, numbers))
    return replace(summed, taps=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.taps, taps))


def merge(left: Metrics, right: Metrics) -> Metrics:
    """Adds the (sum, count) pairs of two micro-batches; names ending in /max and /min keep the extreme."""
    rules: dict[str, Callable[..., Any]] = {"max": jnp.maximum, "min": jnp.minimum}
    return {k: jax.tree.map(rules.get(k.rsplit("/", 1)[-1], jnp.add), v, right[k]) for k, v in left.items()}


def finish(metrics: Metrics) -> Metrics:
    """Divides every (sum, count) pair; leaves extremes alone."""
    return {k: v[0] / jnp.maximum(v[1], 1e-8) if isinstance(v, tuple) else v for k, v in metrics.items()}


def _guarded_update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: Params,
    by_rule: Params,
    fine: jax.Array,
    ema_decay: float,
    rows: RowTraining | None,
) -> TrainState:
    weights, tables, rest = partition(state.params, rows)
    updates, new_optimizer = optimizer.update(gradients, state.optimizer, weights)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)  # noqa: E731
    moved = keep(optax.apply_updates(weights, updates), weights)
    ruled = rest | {"state": keep(by_rule, rest["state"])} if by_rule else rest
    params = join(join(moved, tables), ruled)
    ema = state.ema
    if ema is not None:
        ema = keep(ema_update(ema, params, ema_decay), ema)
    return replace(
        state,
        step=state.step + 1,
        params=params,
        optimizer=keep(new_optimizer, state.optimizer),
        ema=ema,
        bad=jnp.where(fine, 0, state.bad + 1),
        skipped=state.skipped + ~fine,
    )


def _within(mesh: jax.sharding.Mesh, compiled: Step) -> Step:
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return compiled(state, batch)

    return step
