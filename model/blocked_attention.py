"""Attention that never holds more than a block of scores, whose keys may lie on other devices.

Each block of queries meets one block of keys after the other and keeps a running softmax (2112.05682, 2205.14135); the
backward pass computes the blocks again. Where a mesh splits the columns over its axis "context", the keys travel around
it and every device meets all of them without ever holding more than its own and its neighbour's (ring attention,
2310.01889).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.remat import ATTENTION, named
from model.sharding import activation_spec, axes_of, varying

BLOCK = 512
RING = "context"


class Columns(NamedTuple):
    """Where columns stand: `positions` and `segments` [B, S] each."""

    positions: jax.Array
    segments: jax.Array


class Sight(NamedTuple):
    """The columns of the queries [B, S] and of the keys [B, L]."""

    queries: Columns
    keys: Columns


class Way(NamedTuple):
    """How a device computes: keys seen back (None: all), columns per block, and the devices keys travel around."""

    window: int | None
    block: int
    devices: int


def sees(queries: Columns, keys: Columns, window: int | None) -> jax.Array:
    """Who sees whom: [B, S], [B, L] -> [B, S, L] bool; same segment, not later, fewer than `window` positions back."""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    same = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (keys.segments[:, None, :] > 0)
    visible = same & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def blocked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    window: int | None,
    scale: float,
    block: int = BLOCK,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention: q [B, H, S, D], k [B, K, L, D], v [B, K, L, V] -> [B, H, S, V]; fp32 softmax.

    `sinks` [H] as in model/attention.py. Queries that see nothing (padding) get zeros. On a mesh, rows, heads and
    columns stay where they are.
    """
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    given = (q, k, v, sight) if sinks is None else (q, k, v, sight, sinks)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _with_sinks(Way(window, block, 1), *given)
    columns = "length" if k.shape[2] == q.shape[2] else "cache_length"
    outer = activation_spec(("batch", "act_heads", "length", None), q.shape)
    inner = activation_spec(("batch", "act_kv_heads", columns, None), k.shape)
    if outer[1] != inner[1]:  # heads that share keys must lie together
        outer, inner = (type(spec)(spec[0], None, *spec[2:]) for spec in (outer, inner))
    marks: list[Any] = [type(spec)(spec[0], spec[2]) for spec in (outer, inner)]
    devices = mesh.shape[RING] if RING in axes_of(inner) else 1
    seen = Sight(*(Columns(mark, mark) for mark in marks))
    specs: tuple[Any, ...] = (outer, inner, inner, seen, type(outer)(outer[1]))[: len(given)]

    def local(*arrays: Any) -> jax.Array:
        return _with_sinks(Way(window, block, devices), *map(_everywhere, arrays, specs))

    def _everywhere(part: Any, spec: Any) -> Any:
        missing = lambda spec: [axis for axis in axes_of(outer) if axis not in axes_of(spec)]  # noqa: E731
        return jax.tree.map(lambda leaf, spec: varying(leaf, missing(spec)), part, spec)

    return jax.shard_map(local, in_specs=specs, out_specs=outer)(*given)


def _with_sinks(
    way: Way, q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, sinks: jax.Array | None = None
) -> jax.Array:
    """All other logits together hold sigmoid(log of their sum - sink) of the softmax, known when all keys are seen."""
    y, lse = _attention(q, k, v, sight, way)
    if sinks is None:
        return y
    share = jax.nn.sigmoid(lse.reshape(q.shape[:3]) - sinks.astype(jnp.float32)[:, None])
    return (y.astype(jnp.float32) * share[..., None]).astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, way: Way) -> tuple[jax.Array, jax.Array]:
    return _forward(q, k, v, sight, way)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, way: Way) -> tuple[Any, Any]:
    """The output and the log of each softmax's sum [B, K, H / K, S], and what the backward pass needs: both and all
    inputs.
    """
    (B, H, S, _), K, wide = q.shape, k.shape[1], v.shape[-1]
    queries = (_cut(_grouped(q, K), way.block, 3), _cut_columns(sight.queries, way.block))
    keys = (_cut(k, way.block, 2), _cut(v, way.block, 2), _cut_columns(sight.keys, way.block))
    like = jnp.zeros_like(queries[0][..., 0], jnp.float32)
    held = (like - jnp.inf, like, jnp.broadcast_to(like[..., None], (*like.shape, wide)))

    def meet(held: Any, keys: Any) -> Any:
        def row(_: None, item: Any) -> tuple[None, Any]:
            (q, columns), held = item

            def column(held: Any, key: Any) -> tuple[Any, None]:
                visible = sees(columns, key[2], way.window)
                return jax.lax.cond(visible.any(), _gather, lambda held, *_: held, held, q, key[:2], visible), None

            return None, jax.lax.scan(column, held, keys)[0]

        return jax.lax.scan(row, None, (queries, held))[1]

    (top, total, mixed), _ = _around(way.devices, meet, held, keys)
    y = (mixed / jnp.where(total > 0, total, 1.0)[..., None]).astype(q.dtype)
    lse = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)
    y, lse = _joined(y, 3)[:, :, :, :S].reshape(B, H, S, wide), _joined(lse, 3)[..., :S]
    y, lse = named(y, ATTENTION), named(lse, ATTENTION)
    return (y, lse), (q, k, v, sight, y, lse)


def _gather(held: Any, q: jax.Array, key: Any, visible: jax.Array) -> Any:
    """The running softmax of q [B, K, G, s, D] after the keys and values [B, K, l, ..] of one block."""
    (top, total, mixed), (k, v) = held, key
    scores = _scores(q, k, visible)
    new = jnp.maximum(top, scores.max(-1))
    safe = jnp.where(jnp.isneginf(new), 0.0, new)
    shrink, weights = jnp.exp(top - safe), jnp.exp(scores - safe[..., None])
    more = jnp.einsum("bkgsl,bkld->bkgsd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return new, total * shrink + weights.sum(-1), mixed * shrink[..., None] + more


def _scores(q: jax.Array, k: jax.Array, visible: jax.Array) -> jax.Array:
    scores = jnp.einsum("bkgsd,bkld->bkgsl", q, k, preferred_element_type=jnp.float32)
    return jnp.where(visible[:, None, None], scores, -jnp.inf)


def _backward(way: Way, saved: Any, learnt: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    """dS = P (dP - rowsum(dY Y) + dlse), block by block; what keys and values learn travels with them."""
    (q, k, v, sight, y, lse), (dy, dlse) = saved, learnt
    (B, H, S, D), K, L = q.shape, k.shape[1], k.shape[2]
    delta = _grouped((dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1)[..., None], K)[..., 0] - dlse
    rows = tuple(_cut(x, way.block, 3) for x in (_grouped(q, K), _grouped(dy.astype(q.dtype), K), lse, delta))
    queries = (*rows, _cut_columns(sight.queries, way.block))
    keys = (_cut(k, way.block, 2), _cut(v, way.block, 2), _cut_columns(sight.keys, way.block))
    none = tuple(jnp.zeros_like(part, jnp.float32) for part in keys[:2])

    def meet(dq: jax.Array, keys: Any) -> tuple[jax.Array, Any]:
        def column(dq: jax.Array, item: Any) -> tuple[jax.Array, Any]:
            (k, v, columns), learnt = item

            def row(learnt: Any, item: Any) -> tuple[Any, jax.Array]:
                query, dq = item
                visible = sees(query[4], columns, way.window)
                return jax.lax.cond(
                    visible.any(), _learn, lambda learnt, dq, *_: (learnt, dq), learnt, dq, query, k, v, visible
                )

            learnt, dq = jax.lax.scan(row, learnt, (queries, dq))
            return dq, learnt

        dq, learnt = jax.lax.scan(column, dq, keys)
        return dq, (keys[0], learnt)

    dq, (_, (dk, dv)) = _around(way.devices, meet, jnp.zeros_like(rows[0], jnp.float32), (keys, none), returns=True)
    dq = _joined(dq, 3)[:, :, :, :S].reshape(B, H, S, D)
    dk, dv = _joined(dk, 2)[:, :, :L], _joined(dv, 2)[:, :, :L]
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _learn(
    learnt: Any, dq: jax.Array, query: Any, k: jax.Array, v: jax.Array, visible: jax.Array
) -> tuple[Any, jax.Array]:
    """One block of queries and one of keys: their gradients, added."""
    (dk, dv), (q, dy, lse, delta, _) = learnt, query
    wide: dict[str, Any] = {"preferred_element_type": jnp.float32}
    p = jnp.exp(_scores(q, k, visible) - lse[..., None])
    dp = jnp.einsum("bkgsd,bkld->bkgsl", dy, v, **wide)
    ds = (p * (dp - delta[..., None])).astype(q.dtype)
    dv = dv + jnp.einsum("bkgsl,bkgsd->bkld", p.astype(dy.dtype), dy, **wide)
    dk = dk + jnp.einsum("bkgsl,bkgsd->bkld", ds, q, **wide)
    return (dk, dv), dq + jnp.einsum("bkgsl,bkld->bkgsd", ds, k, **wide)


def _around(devices: int, meet: Any, held: Any, keys: Any, returns: bool = False) -> tuple[Any, Any]:
    """`meet(held, keys) -> held` with the keys of every device of the ring; with `returns`, -> (held, keys), and the
    keys come home at the end.
    """
    once = meet if returns else lambda held, keys: (meet(held, keys), keys)
    if devices == 1:
        return once(held, keys)
    onwards = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        held, keys = once(*carry)
        return (held, jax.tree.map(lambda x: jax.lax.ppermute(x, RING, onwards), keys)), None

    return jax.lax.scan(hop, (held, keys), None, length=devices)[0]


def _grouped(x: jax.Array, K: int) -> jax.Array:
    """[B, H, S, D] -> [B, K, H / K, S, D]: query heads by the key head they share."""
    return x.reshape(x.shape[0], K, -1, *x.shape[2:])


def _cut(x: jax.Array, block: int, axis: int) -> jax.Array:
    """Cuts an axis into blocks, the last filled up with zeros, and puts their number first."""
    length = x.shape[axis]
    block = min(block, length)
    padded = jnp.pad(x, [(0, -length % block if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :]), axis, 0)


def _cut_columns(columns: Columns, block: int) -> Columns:
    """The like for what columns are: those that fill up are padding, and neither see nor are seen."""
    return Columns(*(_cut(part, block, 1) for part in columns))


def _joined(x: jax.Array, axis: int) -> jax.Array:
    """Undoes `_cut`, without dropping what filled up."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
