"""The only jitted update: gradients of an objective, micro-batch by micro-batch, then clip, update and guard."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.lm import Params
from model.rules import learn
from model.sharding import on_mesh
from train.accumulate import WHOLE, Accumulated, UpdatePlan, accumulate
from train.batches import check_rows
from train.objectives.losses import Objective
from train.objectives.metrics import Metrics, finish
from train.optimizer import ema_update
from train.setup import Setup, Update
from train.sparse_tables import SparseTables, join
from train.state import TrainState, moved, partition, step_key

Move = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Learn = Callable[[Params, dict[str, jax.Array]], tuple[Params, dict[str, jax.Array]]]


class Step:
    """step(state, batch) -> (state, metrics): an update, compiled for a mesh, with the state donated."""

    def __init__(self, move: Move, mesh: jax.sharding.Mesh | None = None) -> None:
        """Compiles at the first call, under the sharding rules in force now."""
        self._jitted = jax.jit(move, donate_argnums=(0,))
        self._call, self._lower = on_mesh(mesh)(self._jitted), on_mesh(mesh)(self._jitted.lower)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """One update."""
        return self._call(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The program for a state and a batch, or for their shapes."""
        return self._lower(state, batch)


def step_of(setup: Setup, update: Update) -> Step:
    """The step of a run; ValueError for a batch that the mesh or the micro-batches do not divide."""
    config = setup.config
    check_rows(update.batch.rows, update.plan.micro_batch, setup.mesh)
    return make_step(
        update.objective,
        setup.optimizer,
        setup.mesh,
        ema_decay=config.optimizer.ema,
        learn=functools.partial(learn, setup.model.config),
        rows=setup.rows,
        plan=update.plan,
        on_host=config.optimizer.memory == "host",
    )


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh | None = None, **options: Any
) -> Step:
    """The compiled `make_update`, whose `options` these are."""
    return Step(make_update(objective, optimizer, **options), mesh)


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    learn: Learn | None = None,
    rows: SparseTables | None = None,
    plan: UpdatePlan = WHOLE,
    on_host: bool = False,
) -> Move:
    """Builds update(state, batch) -> (state, metrics).

    The batch is cut into micro-batches (`plan.micro_batch`) whose totals and counts are summed
    before the one division, so the result is that of the big batch. A non-finite loss or gradient leaves parameters and
    optimiser as they were and is counted. `learn(params["state"], sums)` then moves what is learnt by rule
    (model/rules.py), from what the layers reported over the whole batch; `rows` moves the rows of large tables
    (train/sparse_tables.py). `plan` leaves out work that the objective does not need (train/accumulate.py). `on_host`:
    the optimiser's state lies in host memory between updates (`make_state` puts it there). Metrics come back
    as scalars, with `loss`, `grad_norm` (of the dense parameters), `skipped`, `bad`.
    """

    backward = make_backward(objective, rows, plan)
    apply = make_apply(optimizer, ema_decay=ema_decay, learn=learn, rows=rows, on_host=on_host)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return apply(state, backward(state, batch))

    return update


def make_backward(
    objective: Objective, rows: SparseTables | None = None, plan: UpdatePlan = WHOLE
) -> Callable[[TrainState, Any], Accumulated]:
    """Builds backward(state, batch) -> what an update needs of a batch: sums, metrics, gradients of the total."""

    def backward(state: TrainState, batch: Any) -> Accumulated:
        return accumulate(objective, state.params, batch, step_key(state.seed, state.step), rows, plan)

    return backward


def make_apply(
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    learn: Learn | None = None,
    rows: SparseTables | None = None,
    on_host: bool = False,
) -> Callable[[TrainState, Accumulated], tuple[TrainState, Metrics]]:
    """Builds apply(state, accumulated) -> (state, metrics), the rest of an update; options as of `make_update`."""

    def apply(state: TrainState, accumulated: Accumulated) -> tuple[TrainState, Metrics]:
        total, count, metrics = accumulated.total, jnp.maximum(accumulated.count, 1e-8), dict(accumulated.metrics)
        gradients = jax.tree.map(lambda g: (g / count).astype(g.dtype), accumulated.gradients)
        norm = optax.tree.norm(gradients)
        fine = jnp.isfinite(norm) & jnp.isfinite(total)
        sums = metrics.pop("sums", None)
        by_rule, reports = learn(state.params.get("state", {}), sums) if learn and sums else ({}, {})
        if rows:
            fine &= rows.finite(accumulated.taps)
            weights, tables = rows.split(state.params)
            updates = state.step - state.skipped
            tables, of_rows = rows.apply(tables, state.rows, accumulated.taps, updates=updates, count=count, fine=fine)
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

    return apply


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
