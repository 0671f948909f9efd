"""Rows to experts and back on one device: three ways that give the same numbers.

A dispatch takes one expert as a function, all experts' weights, rows and their routes, and returns the rows' gated sum
of experts, and how many pairs of row and expert it dropped. "dense" runs every expert on every row: the oracle.
"capacity" puts rows in buffers of equal size, one per expert, and multiplies them as one batch. "ragged" sorts rows by
expert for `jax.lax.ragged_dot`.

With a capacity factor f, an expert takes at most ceil(f x N k / E) rows, the earliest in the batch; later ones are
dropped, that is, they lose this expert's share, and are counted. Without one nothing is ever dropped.
`fair` is the load of an expert if all were alike; it and f are static.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.routing import Routes, chosen

Weights = dict[str, jax.Array]  # the arrays of all experts, [E, ...] each
# (weights of one expert, rows [R, D]) -> [R, D]; or (all weights, rows sorted by expert, sizes=load [E]) -> [R, D]
Expert = Callable[..., jax.Array]
Result = tuple[jax.Array, jax.Array]
BLOCK = 128  # rows; on CPU smaller products leave all cores but one idle
TOGETHER = 4096  # rows that are summed at a time; on the way each is as large as once for every expert it went to


class Layout(NamedTuple):
    """A buffer of R rows and who sits where.

    `source` [R]: the assignment n k + j that row r holds, N k if none; `position` [N, k]: the row that holds an
    assignment, R if none does.
    """

    source: jax.Array
    position: jax.Array


class Spill(NamedTuple):
    """What did not fit the buffers, in blocks of rows that share an expert.

    `source` [blocks, rows] as in Layout, `owner` [blocks] the expert of each block, `used` the number in use.
    """

    source: jax.Array
    owner: jax.Array
    used: jax.Array


def dense(expert: Expert, weights: Weights, x: jax.Array, routes: Routes, fair: float, factor: float) -> Result:
    """Every expert on every row; for checking the others, and for very small sizes."""
    n_experts = count(weights)
    routes, dropped = _limit(routes, n_experts, fair, factor)

    @jax.checkpoint
    def add(y: jax.Array, one: Any) -> tuple[jax.Array, None]:
        index, mine = one
        gate = jnp.where(routes.experts == index, routes.gates, 0.0).sum(-1, keepdims=True)
        return y + gate * expert(mine, x).astype(jnp.float32), None

    start = 0.0 * x.astype(jnp.float32)
    return jax.lax.scan(add, start, (jnp.arange(n_experts), weights))[0].astype(x.dtype), dropped


def capacity(expert: Expert, weights: Weights, x: jax.Array, routes: Routes, fair: float, factor: float) -> Result:
    """Buffers of equal size per expert, multiplied as one batch; what does not fit is dropped, or follows in blocks.

    Without a capacity factor the buffers hold two standard deviations more than a fair share, and as many blocks as
    needed hold the rest: an even load costs no more than the buffers, and any load is served.
    """
    (n, k), n_experts = routes.experts.shape, count(weights)
    room = room_rows(n, fair, factor)
    rank, load = ranks(routes.experts, n_experts)
    layout = seats(routes.experts, rank, n_experts, room)
    if factor or room == n:
        return _buffered(expert, weights, x, routes.gates, layout), overflow(load, room).sum()
    size = max(8, min(BLOCK, room // 4 // 8 * 8))
    blocks = -(-overflow(load, room) // size)
    end = jnp.cumsum(blocks)
    first = jnp.append((end - blocks) * size - room, 0)[routes.experts]
    # An expert that spills has filled `room` rows, and room >= size: that many blocks always suffice.
    most = -(-n * k // size)
    spilt = (rank >= room) & (routes.experts < n_experts)
    source = _layout(jnp.where(spilt, first + rank, most * size), most * size).source.reshape(most, size)
    owner = (end <= jnp.arange(most)[:, None]).sum(-1)
    spill = Spill(source, owner, end[-1])
    return _spilling(expert, weights, x, routes.gates, layout, spill), jnp.zeros((), jnp.int32)


def ragged(expert: Expert, weights: Weights, x: jax.Array, routes: Routes, fair: float, factor: float) -> Result:
    """Rows sorted by expert and multiplied group by group: the fastest where `ragged_dot` has a kernel (TPU)."""
    n_experts, rows = count(weights), routes.experts.size
    routes, dropped = _limit(routes, n_experts, fair, factor)
    rank, load = ranks(routes.experts, n_experts)
    first = jnp.append(jnp.cumsum(load) - load, rows)
    layout = _layout(jnp.where(routes.experts < n_experts, first[routes.experts] + rank, rows), rows)
    y = expert(weights, to_rows(x, layout), sizes=load)
    return from_rows(y, routes.gates, layout), dropped


DISPATCHES: dict[str, Callable[..., Result]] = {"dense": dense, "capacity": capacity, "ragged": ragged}


def count(weights: Weights) -> int:
    """The number of experts."""
    return jax.tree.leaves(weights)[0].shape[0]


def room_rows(n: int, fair: float, factor: float) -> int:
    """Rows of one expert's buffer, out of n."""
    if factor:
        return min(n, math.ceil(factor * fair))
    return min(n, 8 * math.ceil((fair + 2 * math.sqrt(fair)) / 8))


def ranks(experts: jax.Array, n_experts: int) -> tuple[jax.Array, jax.Array]:
    """experts [N, k] -> (how many earlier rows chose the same expert [N, k], load [E]), int32."""
    picked = chosen(experts, n_experts).astype(jnp.int32)
    # In two steps, of which XLA makes a handful of operations; one long sum takes 20 times as long on CPU.
    blocks = jnp.pad(picked, ((0, -len(picked) % BLOCK), (0, 0))).reshape(-1, BLOCK, n_experts)
    within = jnp.cumsum(blocks, 1)
    upto = within + (jnp.cumsum(within[:, -1], 0) - within[:, -1])[:, None]
    rank = jnp.take_along_axis(upto.reshape(-1, n_experts)[: len(picked)], jnp.minimum(experts, n_experts - 1), 1) - 1
    return rank, upto[-1, -1]


def seats(experts: jax.Array, rank: jax.Array, n_experts: int, room: int) -> Layout:
    """Experts and ranks [N, k] -> the layout of E buffers of `room` rows; who ranks higher has no seat."""
    fits = (rank < room) & (experts < n_experts)
    return _layout(jnp.where(fits, experts * room + rank, n_experts * room), n_experts * room)


def overflow(load: jax.Array, room: int) -> jax.Array:
    """How many rows of each expert find no room."""
    return jnp.maximum(load - room, 0)


def _limit(routes: Routes, n_experts: int, fair: float, factor: float) -> tuple[Routes, jax.Array]:
    """The routes without what exceeds the capacity, and how many assignments that were."""
    if not factor:
        return routes, jnp.zeros((), jnp.int32)
    rank, load = ranks(routes.experts, n_experts)
    room = room_rows(routes.experts.shape[0], fair, factor)
    keep = rank < room
    kept = Routes(jnp.where(keep, routes.experts, n_experts), jnp.where(keep, routes.gates, 0.0))
    return kept, overflow(load, room).sum()


def _layout(position: jax.Array, rows: int) -> Layout:
    flat = position.reshape(-1)
    return Layout(jnp.full(rows, flat.size).at[flat].set(jnp.arange(flat.size), mode="drop"), position)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of x, zeros for an index beyond the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


# Each of these two is the other's transpose. Left to autodiff, both gathers would turn into scatters of whole rows.
@jax.custom_vjp
def to_rows(x: jax.Array, layout: Layout) -> jax.Array:
    """x [N, D] -> buffer [R, D], zeros in empty rows."""
    return _take(x, layout.source // layout.position.shape[1])


@jax.custom_vjp
def from_rows(rows: jax.Array, gates: jax.Array, layout: Layout) -> jax.Array:
    """Buffer [R, D] and gates [N, k] fp32 -> gated sums [N, D], added up in fp32 and given in the rows' dtype."""

    def some(position: jax.Array, gates: jax.Array) -> jax.Array:
        parts = (_take(rows, at) * gate[:, None] for at, gate in zip(position.T, gates.T, strict=True))
        return functools.reduce(jnp.add, parts).astype(rows.dtype)

    return _in_turn(some, layout.position, gates)


def _in_turn(some: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """A function of rows, applied to at most TOGETHER of them at a time."""
    n, block = len(arrays[0]), TOGETHER
    if n <= block:
        return some(*arrays)
    split = lambda x: jnp.pad(x, ((0, -n % block), *[(0, 0)] * (x.ndim - 1))).reshape(-1, block, *x.shape[1:])  # noqa: E731
    mapped = jax.lax.map(lambda part: some(*part), tuple(map(split, arrays)))
    return mapped.reshape(-1, *mapped.shape[2:])[:n]


def _to_rows_backward(layout: Layout, drows: jax.Array) -> tuple[jax.Array, None]:
    ones = jnp.ones(layout.position.shape, jnp.float32)
    return from_rows(drows, ones, layout), None


def _from_rows_backward(saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, gates, layout = saved

    def some(position: jax.Array, dy: jax.Array) -> jax.Array:
        wide = dy.astype(jnp.float32)
        return jnp.stack([(_take(rows, at) * wide).sum(-1) for at in position.T], -1)

    dgates = _in_turn(some, layout.position, dy)
    gate = _take(gates.reshape(-1), layout.source)
    return (to_rows(dy, layout) * gate[:, None]).astype(rows.dtype), dgates, None


to_rows.defvjp(lambda x, layout: (to_rows(x, layout), layout), _to_rows_backward)
from_rows.defvjp(lambda *args: (from_rows(*args), args), _from_rows_backward)


def _buffered(expert: Expert, weights: Weights, x: jax.Array, gates: jax.Array, layout: Layout) -> jax.Array:
    rows = to_rows(x, layout).reshape(count(weights), -1, x.shape[-1])
    return from_rows(jax.vmap(expert)(weights, rows).reshape(-1, x.shape[-1]), gates, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spilling(
    expert: Expert, weights: Weights, x: jax.Array, gates: jax.Array, layout: Layout, spill: Spill
) -> jax.Array:
    """`_buffered`, then the spilt blocks one by one, in a loop as long as the load asks for."""
    return _spilling_forward(expert, weights, x, gates, layout, spill)[0]


def _block(expert: Expert, weights: Weights, rows: jax.Array, gates: jax.Array) -> jax.Array:
    return expert(weights, rows).astype(jnp.float32) * gates[:, None]


def _pick(spill: Spill, i: jax.Array, weights: Weights, x: jax.Array, gates: jax.Array) -> tuple[Any, ...]:
    """Block i: the rows and assignments it holds, and its expert's weights, rows and gates."""
    source, owner = spill.source[i], spill.owner[i]
    origin = source // gates.shape[1]
    mine = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, owner, 0, keepdims=False), weights)
    return origin, source, (mine, _take(x, origin), _take(gates.reshape(-1), source))


def _spilling_forward(
    expert: Expert, weights: Weights, x: jax.Array, gates: jax.Array, layout: Layout, spill: Spill
) -> tuple[jax.Array, Any]:
    y, pull = jax.vjp(functools.partial(_buffered, expert, layout=layout), weights, x, gates)

    def add(i: jax.Array, y: jax.Array) -> jax.Array:
        origin, _, inputs = _pick(spill, i, weights, x, gates)
        return y.at[origin].add(_block(expert, *inputs).astype(y.dtype), mode="drop")

    return jax.lax.fori_loop(0, spill.used, add, y), (pull, weights, x, gates, spill)


def _spilling_backward(expert: Expert, saved: Any, dy: jax.Array) -> tuple[Any, ...]:
    pull, weights, x, gates, spill = saved

    def add(i: jax.Array, sums: Any) -> Any:
        dweights, dx, dgates = sums
        origin, source, inputs = _pick(spill, i, weights, x, gates)
        _, pull_block = jax.vjp(functools.partial(_block, expert), *inputs)
        mine, drows, dgate = pull_block(_take(dy, origin).astype(jnp.float32))
        dweights = jax.tree.map(lambda total, new: total.at[spill.owner[i]].add(new), dweights, mine)
        return dweights, dx.at[origin].add(drows, mode="drop"), dgates.at[source].set(dgate, mode="drop")

    dweights, dx, dgates = pull(dy)
    dweights, dx, dgates = jax.lax.fori_loop(0, spill.used, add, (dweights, dx, dgates.reshape(-1)))
    return dweights, dx, dgates.reshape(gates.shape), None, None


_spilling.defvjp(_spilling_forward, _spilling_backward)
