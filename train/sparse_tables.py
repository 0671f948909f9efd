"""Row-sparse training of large tables (PEER's experts): gradients, state and updates of the touched rows alone.

The cost of a step must not grow with the number of rows N, so a table has no dense gradient [N, D] and no dense
moments. Its layer gets a tap, zeros whose gradient lists which rows were used with which coefficients and vectors
(model/peer.py); from it the gradient of every touched row is summed exactly, and Adam without a first moment moves that
row. Two numbers per row are kept, against 2 * D of AdamW. The global norm that clips gradients covers the dense
parameters alone: Adam's step is invariant to the scale of a row's gradients, so clipping would change little here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from model.config import ModelConfig
from model.depth import layers_of
from model.lm import COLLECTIONS, Model, Params
from model.peer import bank_name, table_rows, tap_shapes
from model.sharding import constrain
from train.optimizer import OptimizerConfig, make_schedule

# Rows updated together, and pairs (token, expert) summed into them at a time: what fits a CPU's cache at D = 256.
ROWS = 4096
PAIRS = 4096

AXIS = "rows"


@flax.struct.dataclass
class TableState:
    """Of each row of one table: `second`, the running mean of its squared gradient, and `count`, its updates."""

    second: jax.Array
    count: jax.Array


class Groups(NamedTuple):
    """Pairs (token, expert) in the order of their rows.

    `order` [P] numbers of the pairs; `rank` [P] which of the touched rows, counted upwards, each belongs to; `rows`
    and `starts` [R + 1] the row number of a rank, N beyond the last, and its first place in the order; `touched` rows.
    """

    order: jax.Array
    rank: jax.Array
    rows: jax.Array
    starts: jax.Array
    touched: jax.Array


@dataclasses.dataclass(frozen=True)
class SparseTables:
    """What the step needs to train the tables of `model`: `axes` is `model.axes()`, `schedule` the learning rate."""

    model: Model
    axes: Params
    schedule: optax.Schedule
    config: OptimizerConfig

    def split(self, weights: Params) -> tuple[Params, Params]:
        """(parameters without tables, tables)."""
        return split(weights, self.axes)

    def taps(self, tables: Params, tokens: int) -> Params:
        """Taps for one pass over `tokens` tokens."""
        return make_taps(self.model, tables, tokens)

    def finite(self, taps: Params) -> jax.Array:
        """Whether the gradients of the taps can be used."""
        return finite(taps)

    def apply(
        self, tables: Params, states: Any, taps: Params, *, updates: jax.Array, count: jax.Array, fine: jax.Array
    ) -> tuple[Params, Any]:
        """(tables, states of their rows) moved by the gradients of the taps, unless they are not `fine`; `updates`
        made so far choose the learning rate.
        """
        return apply_rows(
            tables,
            states,
            taps,
            model=self.model.config,
            count=count,
            rate=self.schedule(updates),
            fine=fine,
            hyperparameters=self.config,
        )


def sparse_tables_of(model: Model, config: OptimizerConfig, total_steps: int) -> SparseTables | None:
    """How `model`'s tables are trained, or None where it has none or the config asks for dense gradients."""
    axes = table_axes(model)
    found = any(is_table(path, names) for path, names in flax.traverse_util.flatten_dict(axes).items())
    if not found or config.tables == "dense":
        return None
    return SparseTables(model, axes, make_schedule(config, total_steps), config)


def table_axes(model: Model) -> Params:
    """`model.axes()`, in which tables of a recurrent core are no tables: a tap lists the rows of one pass, and the core
    makes many, so they are trained densely.
    """
    core = [f"layer_{i}" for i in layers_of(model.config)[1]] if model.config.depth == "recurrent" else []
    flat = flax.traverse_util.flatten_dict(model.axes())
    dense = {path: ("vocab", *names[1:]) for path, names in flat.items() if path[0] in core and names[0] == AXIS}
    return flax.traverse_util.unflatten_dict(flat | dense)


def table_states(tables: Params) -> Any:
    """A TableState, all zeros, for every table [N, D] of a tree."""
    zeros = lambda table: jnp.zeros(table.shape[:1], jnp.float32)  # noqa: E731
    return jax.tree.map(lambda table: TableState(zeros(table), zeros(table)), tables)


def is_table(path: tuple[str, ...], names: tuple[str | None, ...]) -> bool:
    """Whether a leaf of the parameters is trained by rows: its first logical axis says so, and it is no state."""
    return path[0] not in COLLECTIONS and names[0] == AXIS


def split(params: Params, axes: Params) -> tuple[Params, Params]:
    """(parameters without tables, tables), each a tree like `params` with leaves left out; `axes` is `model.axes()`."""
    names = flax.traverse_util.flatten_dict(axes)
    parts: tuple[Params, Params] = ({}, {})
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        parts[is_table(path, names[path])][path] = leaf
    dense, tables = map(flax.traverse_util.unflatten_dict, parts)
    return dense, tables


def join(left: Params, right: Params) -> Params:
    """The union of two trees of nested dicts without a leaf in common: the inverse of `split`."""
    both = {name: join(left[name], right[name]) for name in left.keys() & right.keys()}
    return {**left, **right, **both}


def make_taps(model: Model, tables: Params, tokens: int) -> Params:
    """Zeros for the "taps" collection of a call of `model.apply` on `tokens` tokens, one tap per layer with tables."""
    paths = {path[:-1] for path in flax.traverse_util.flatten_dict(tables)}
    zeros = lambda: {k: jnp.zeros(s.shape, s.dtype) for k, s in tap_shapes(model.config, tokens).items()}  # noqa: E731
    return flax.traverse_util.unflatten_dict({path: zeros() for path in paths})


def finite(taps: Params) -> jax.Array:
    """Whether every tap was used at most once per micro-batch, and its gradient holds finite numbers only."""
    fine = jnp.array(True)
    for path, leaf in flax.traverse_util.flatten_dict(taps).items():
        fine &= jnp.all(leaf <= 1) if path[-1] == "calls" else jnp.isfinite(leaf).all()
    return fine


def apply_rows(
    tables: Params,
    state: Any,
    taps: Params,
    *,
    model: ModelConfig,
    count: jax.Array,
    rate: jax.Array,
    fine: jax.Array,
    hyperparameters: OptimizerConfig,
) -> tuple[Params, Any]:
    """Moves all tables by the gradients of their taps: (tables, states of their rows).

    `taps` are gradients of the total, those of several micro-batches stacked on leading axes; they are divided by
    `count` and applied at the rate `rate`, or not at all unless `fine`.
    """
    flat = flax.traverse_util.flatten_dict(tables)
    states = flax.traverse_util.flatten_dict(state)
    gradients = flax.traverse_util.flatten_dict(taps)
    for path in sorted({path[:-1] for path in flat}):
        tap = {name: gradients[*path, name] for name in tap_shapes(model, 1)}
        indices = tap["indices"].reshape(-1, tap["indices"].shape[-1]).astype(jnp.int32)
        groups = group(indices.reshape(-1), table_rows(model))
        for name, vectors in (("down", "inputs"), ("up", "outputs")):
            here = (*path, bank_name(name, len(model.peer.banks)))
            weights = tap[name].reshape(indices.shape) / count
            rows = tap[vectors].reshape(-1, tap[vectors].shape[-1])
            flat[here], states[here] = update(
                flat[here], states[here], groups, weights, rows, jnp.where(fine, rate, jnp.nan), hyperparameters
            )
    return flax.traverse_util.unflatten_dict(flat), flax.traverse_util.unflatten_dict(states)


def group(indices: jax.Array, n_rows: int) -> Groups:
    """Sorts pairs by row: indices [P] int32 in [0, n_rows)."""
    pairs, blocks = indices.size, -(-min(indices.size, n_rows) // ROWS)
    order = jnp.argsort(indices)
    sorted_rows = indices[order]
    first = jnp.concatenate([jnp.ones((1,), bool), sorted_rows[1:] != sorted_rows[:-1]])
    rank = jnp.cumsum(first) - 1
    slots = jnp.where(first, rank, blocks * ROWS + 1)
    rows = jnp.full((blocks * ROWS + 1,), n_rows, jnp.int32).at[slots].set(sorted_rows, mode="drop")
    starts = jnp.full((blocks * ROWS + 1,), pairs, jnp.int32).at[slots].set(jnp.arange(pairs), mode="drop")
    return Groups(order, rank, rows, starts, rank[-1] + 1)


def update(
    table: jax.Array,
    state: TableState,
    groups: Groups,
    weights: jax.Array,
    vectors: jax.Array,
    rate: jax.Array,
    hyperparameters: OptimizerConfig,
) -> tuple[jax.Array, TableState]:
    """Lazy Adam without a first moment, one second moment per row, on the rows that have a gradient.

    A row's gradient g is the sum of weights[t, k] * vectors[t] over its pairs; weights [T, K], vectors [T, D].
    v <- b2 v + (1 - b2) mean(g^2), with the bias correction of the row's own count of updates, and
    row <- row - rate * g / (sqrt(v) + eps). Rows whose g is zero or not finite stay as they are, state and all; so do
    all rows when `rate` is NaN. Exact for any number of pairs per row, in O(P * D) time and O(ROWS * D) memory.

    Source: Adam (1412.6980) with the second moment of a row shared, as in Adafactor's and row-wise AdaGrad's tables.
    """
    b2, eps = hyperparameters.b2, hyperparameters.eps
    vectors = constrain(vectors, None, "row_width")

    def block(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        table, second, count = carry
        gradient = row_gradients(groups, weights, vectors, i * ROWS)
        rows = jax.lax.dynamic_slice_in_dim(groups.rows, i * ROWS, ROWS)
        square = (gradient * gradient).mean(-1)
        moves = (square > 0) & jnp.isfinite(square) & jnp.isfinite(rate)
        seen = count.at[rows].get(mode="clip") + 1
        mean = b2 * second.at[rows].get(mode="clip") + (1 - b2) * square
        step = -rate / (jnp.sqrt(mean / (1 - b2**seen)) + eps)
        place = jnp.where(moves, rows, table.shape[0])
        delta = jnp.where(moves[:, None], step[:, None] * gradient, 0).astype(table.dtype)
        return (
            table.at[place].add(delta, mode="drop"),
            second.at[place].set(mean, mode="drop"),
            count.at[place].set(seen, mode="drop"),
        )

    blocks = -(-groups.touched // ROWS)
    table, second, count = jax.lax.fori_loop(0, blocks, block, (table, state.second, state.count))
    return table, TableState(second, count)


def row_gradients(groups: Groups, weights: jax.Array, vectors: jax.Array, start: jax.Array) -> jax.Array:
    """Summed gradients [ROWS, D] fp32 of the touched rows of ranks start .. start + ROWS."""
    begin, end = groups.starts[start], groups.starts[start + ROWS]
    pairs, flat = min(PAIRS, weights.size), weights.reshape(-1)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        places = begin + i * pairs + jnp.arange(pairs)
        pair = groups.order.at[places].get(mode="clip")
        rank = jnp.where(places < end, groups.rank.at[places].get(mode="clip") - start, ROWS)
        terms = flat[pair][:, None] * vectors[pair // weights.shape[1]].astype(jnp.float32)
        return total.at[rank].add(terms, mode="drop", indices_are_sorted=True)

    zeros = jnp.zeros((ROWS, vectors.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, -(-(end - begin) // pairs), add, zeros)
