"""What a step reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from model.lm import COLLECTIONS, Params
from model.sharding import replicated
from train.sparse_tables import SparseTables, table_states

REST = ("step", "optimizer", "bad", "skipped", "seed", "rows")
HOST = "pinned_host"  # JAX's name for host memory that an accelerator reads


@flax.struct.dataclass
class TrainState:
    """`step` updates asked for; `params`; `optimizer` state; `ema` averaged parameters or None; `bad` non-finite
    updates skipped in a row, `skipped` in all; `rows` what the rows of large tables remember
    (train/sparse_tables.py). A step's key is fold_in(seed, step), so no key needs saving.
    """

    step: jax.Array
    params: Params
    optimizer: Any
    ema: Params | None
    bad: jax.Array
    skipped: jax.Array
    seed: jax.Array
    rows: Any = field(default_factory=dict)

    def trees(self) -> dict[str, Any]:
        """What a checkpoint keeps, by name: parameters apart from the rest, so that inference reads no optimiser."""
        rest = {name: getattr(self, name) for name in REST}
        return {"params": self.params, "rest": rest} | ({} if self.ema is None else {"ema": self.ema})

    def with_trees(self, trees: dict[str, Any]) -> TrainState:
        """The state of a checkpoint's trees."""
        return replace(self, params=trees["params"], ema=trees.get("ema"), **trees["rest"])


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema: bool = False,
    rows: SparseTables | None = None,
) -> TrainState:
    """A state before the first step; may be jitted with shardings."""
    step, bad, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers: the state is donated
    copy = jax.tree.map(jnp.copy, params) if ema else None
    weights, tables, _ = partition(params, rows)
    return TrainState(
        step, params, optimizer.init(weights), copy, bad, skipped, jnp.asarray(seed, jnp.uint32), table_states(tables)
    )


def forget(state: TrainState, optimizer: optax.GradientTransformation, rows: SparseTables | None = None) -> TrainState:
    """The state with the optimizer's memory as at the start; schedules go on. May be jitted with shardings."""
    weights, tables, _ = partition(state.params, rows)
    scheduled = lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)  # noqa: E731
    keep = lambda new, old: old if scheduled(new) else new  # noqa: E731
    fresh = jax.tree.map(keep, optimizer.init(weights), state.optimizer, is_leaf=scheduled)
    return replace(state, optimizer=fresh, rows=table_states(tables))


def moved(optimizer: Any, space: Any) -> Any:
    """Inside `jit`: the optimiser's arrays brought to a memory; scalars stay on the device."""
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, optimizer)


def partition(params: Params, rows: SparseTables | None = None) -> tuple[Params, Params, Params]:
    """(what the optimiser moves, tables trained by rows, what is learnt by rule): trees with leaves left out."""
    by_rule = {name: tree for name, tree in params.items() if name in COLLECTIONS}
    weights = {name: tree for name, tree in params.items() if name not in COLLECTIONS}
    return (*rows.split(weights), by_rule) if rows else (weights, {}, by_rule)


def step_key(seed: jax.Array | int, step: jax.Array | int) -> jax.Array:
    """The key of one step: the same whether the run was interrupted or not."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_state(
    make_params: Callable[[], Params],
    optimizer: optax.GradientTransformation,
    config: Any,
    mesh: jax.sharding.Mesh | None,
    rows: SparseTables | None = None,
) -> TrainState:
    """The first state of a run; on a mesh, optimiser moments and averages are laid out like their parameters."""
    params = make_params()
    build = functools.partial(
        new_state, optimizer=optimizer, seed=config.seed, ema=bool(config.optimizer.ema), rows=rows
    )
    on_host = config.optimizer.get("memory", "device") == "host"
    if mesh is not None:
        return jax.jit(build, out_shardings=state_shardings(params, build, mesh, on_host), donate_argnums=(0,))(params)
    state = jax.jit(build, donate_argnums=(0,))(params)
    there = lambda x: jax.device_put(x, x.sharding.with_memory_kind(HOST)) if x.ndim else x  # noqa: E731
    return replace(state, optimizer=jax.tree.map(there, state.optimizer)) if on_host else state


def state_shardings(params: Params, build: Callable[..., TrainState], mesh: Any, on_host: bool = False) -> Any:
    """The sharding of every leaf of a state: a parameter's own for what mirrors it, replicated for the rest; with
    `on_host` the optimiser's arrays lie in the memory of the hosts, and scalars, which steer it, stay.
    """
    whole = replicated(mesh)
    own = jax.tree.map(lambda x: x.sharding, params)
    mirrored = {path: (x.shape, x.sharding) for path, x in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: Any, leaf: Any) -> Any:
        """A moment's path ends in that of its parameter, however the optimiser wraps it."""
        found = (mirrored.get(path[i:]) for i in range(len(path)))
        return next((sharding for shape, sharding in filter(None, found) if shape == leaf.shape), whole)

    abstract = jax.eval_shape(build, params)
    moments = jax.tree_util.tree_map_with_path(place, abstract.optimizer)
    if on_host:
        moments = jax.tree.map(lambda s, x: s.with_memory_kind(HOST) if x.ndim else s, moments, abstract.optimizer)
    rest = jax.tree.map(lambda _: whole, abstract)
    return replace(rest, params=own, optimizer=moments, ema=None if abstract.ema is None else own)
