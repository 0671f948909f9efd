"""The only jitted update: gradients of an objective, micro-batch by micro-batch, then clip, update and guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from model.lm import Params
from model.sharding import on_mesh
from train.accumulate import WHOLE, UpdatePlan, accumulate, finish
from train.objectives.losses import Batch, Metrics, Objective
from train.optimizer import ema_update
from train.sparse_tables import SparseTables, join
from train.state import TrainState, moved, partition, step_key

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
    rows: SparseTables | None = None,
    plan: UpdatePlan = WHOLE,
    on_host: bool = False,
    jit: bool = True,
) -> Step:
    """Builds step(state, batch) -> (state, metrics), jitted with the state donated.

    The batch is cut into micro-batches of `micro_batch` rows (None: the whole batch) whose totals and counts are summed
    before the one division, so the result is that of the big batch. A non-finite loss or gradient leaves parameters and
    optimiser as they were and is counted. `learn(params["state"], sums)` then moves what is learnt by rule
    (model/rules.py), from what the layers reported over the whole batch; `rows` moves the rows of large tables
    (train/sparse_tables.py). `plan` leaves out work that the objective does not need (train/accumulate.py). `on_host`:
    the optimiser's state lies in host memory between updates (`make_state` puts it there). Metrics come back
    as scalars, with `loss`, `grad_norm` (of the dense parameters), `skipped`, `bad`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(state.seed, state.step)
        found = accumulate(objective, state.params, batch, key, micro_batch, rows, plan)
        total, count, metrics = found.total, jnp.maximum(found.count, 1e-8), found.metrics
        gradients = jax.tree.map(lambda g: (g / count).astype(g.dtype), found.gradients)
        norm = optax.tree.norm(gradients)
        fine = jnp.isfinite(norm) & jnp.isfinite(total)
        sums = metrics.pop("sums", {})
        by_rule, reports = learn(state.params.get("state", {}), sums) if learn and sums else ({}, {})
        if rows:
            fine &= rows.finite(found.taps)
            weights, tables = rows.split(state.params)
            updates = state.step - state.skipped
            tables, of_rows = rows.apply(tables, state.rows, found.taps, updates=updates, count=count, fine=fine)
            state = replace(state, params=join(weights, tables), rows=of_rows)
        state = _guarded_update(state, optimizer, gradients, by_rule, fine, ema_decay, rows, on_host)
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
    return on_mesh(mesh)(compiled)


def _guarded_update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: Params,
    by_rule: Params,
    fine: jax.Array,
    ema_decay: float,
    rows: SparseTables | None,
    on_host: bool,
) -> TrainState:
    weights, tables, rest = partition(state.params, rows)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)  # noqa: E731
    old_optimizer = moved(state.optimizer, jax.memory.Space.Device) if on_host else state.optimizer
    updates, new_optimizer = optimizer.update(gradients, old_optimizer, weights)
    new_optimizer = keep(new_optimizer, old_optimizer)
    learnt = keep(optax.apply_updates(weights, updates), weights)
    ruled = rest | {"state": keep(by_rule, rest["state"])} if by_rule else rest
    params = join(join(learnt, tables), ruled)
    ema = state.ema
    if ema is not None:
        ema = keep(ema_update(ema, params, ema_decay), ema)
    return replace(
        state,
        step=state.step + 1,
        params=params,
        optimizer=moved(new_optimizer, jax.memory.Space.Host) if on_host else new_optimizer,
        ema=ema,
        bad=jnp.where(fine, 0, state.bad + 1),
        skipped=state.skipped + ~fine,
    )
