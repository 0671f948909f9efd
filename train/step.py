"""The only jitted update: gradients of an objective, micro-batch by micro-batch, then clip, update and guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.lm import Params
from train.losses import Batch, Metrics, Objective
from train.optimizer import ema_update
from train.state import TrainState, step_key

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | None = None,
    *,
    micro_batch: int | None = None,
    ema_decay: float = 0.0,
    jit: bool = True,
) -> Step:
    """Builds step(state, batch) -> (state, metrics), jitted with the state donated.

    The batch is cut into micro-batches of `micro_batch` rows (None: the whole batch) whose totals and counts are summed
    before the one division, so the result is that of the big batch. A non-finite loss or gradient leaves parameters and
    optimiser as they were and is counted. Metrics come back as scalars, with `loss`, `grad_norm`, `skipped`, `bad`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(state.seed, state.step)
        total, count, metrics, gradients = accumulate(objective, state.params, batch, key, micro_batch)
        count = jnp.maximum(count, 1e-8)
        gradients = jax.tree.map(lambda g: (g / count).astype(g.dtype), gradients)
        norm = optax.global_norm(gradients)
        fine = jnp.isfinite(norm) & jnp.isfinite(total)
        state = _guarded_update(state, optimizer, gradients, fine, ema_decay)
        metrics = {
            **finish(metrics),
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


def accumulate(
    objective: Objective, params: Params, batch: Batch, key: jax.Array, micro_batch: int | None
) -> tuple[jax.Array, jax.Array, Metrics, Params]:
    """(total, count, metrics, gradient of the total), summed over micro-batches. Raises if the rows do not divide
    evenly.
    """

    def one(part: Batch, key: jax.Array) -> Any:
        def total_first(p: Params) -> tuple[jax.Array, Any]:
            total, count, metrics = objective(p, part, key)
            return total, (count, metrics)

        (total, (count, metrics)), gradients = jax.value_and_grad(total_first, has_aux=True)(params)
        return total, count, metrics, gradients

    rows = jax.tree.leaves(batch)[0].shape[0]
    size = min(micro_batch or rows, rows)
    if rows % size:
        raise ValueError(
            f"a batch of {rows} rows cannot be cut into micro-batches of {size}; choose a divisor of {rows}"
        )
    if rows == size:
        return one(batch, key)
    parts = jax.tree.map(lambda x: x.reshape(rows // size, size, *x.shape[1:]), batch)
    first = one(jax.tree.map(lambda x: x[0], parts), jax.random.fold_in(key, 0))

    def add(carry: Any, item: Any) -> tuple[Any, None]:
        part, i = item
        total, count, metrics, gradients = one(part, jax.random.fold_in(key, i))
        new = (
            carry[0] + total,
            carry[1] + count,
            merge(carry[2], metrics),
            jax.tree.map(jnp.add, carry[3], gradients),
        )
        return new, None

    rest = jax.tree.map(lambda x: x[1:], parts)
    return jax.lax.scan(add, first, (rest, jnp.arange(1, rows // size)))[0]


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
    fine: jax.Array,
    ema_decay: float,
) -> TrainState:
    updates, new_optimizer = optimizer.update(gradients, state.optimizer, state.params)
    new_params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)  # noqa: E731
    params = keep(new_params, state.params)
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
