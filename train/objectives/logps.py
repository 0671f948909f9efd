"""Log-probabilities and entropies without ever holding [B, S, V].

The head is applied in blocks of time x vocabulary. The forward pass keeps three numbers per token; the backward pass
recomputes each block of logits and turns it into gradients at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.sharding import activation_spec, axes_of, size_of, varying

TIME_BLOCK = 2048
VOCAB_BLOCK = 8192

Pair = tuple[jax.Array, jax.Array]
Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
Blocks = tuple[int, int]  # tokens, vocabulary
Axes = tuple[str, ...]


class Sizes(NamedTuple):
    """Blocks of `time` x `vocab`; the mesh axes `over` which the vocabulary is split, those from which the head's width
    is `gathered`.
    """

    time: int
    vocab: int
    over: Axes = ()
    gathered: Axes = ()


def token_logps(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    scale: float | jax.Array = 1.0,
    blocks: Blocks | None = None,
) -> Pair:
    """Log-prob of each target and entropy of its distribution, softmax(scale * hidden @ head.T).

    hidden [..., D], head [V, D], targets [...] -> two fp32 arrays [...]. `blocks` = (time, vocabulary) block sizes.
    On a mesh hidden is [B, S, D], and every device does its own rows, columns and part of the vocabulary.
    """
    # Weights are cast outside the custom rule, so that their gradient arrives in the parameter's own dtype.
    head, blocks = head.astype(hidden.dtype), blocks or (TIME_BLOCK, VOCAB_BLOCK)
    way = _flat if jax.sharding.get_abstract_mesh().empty else _spread
    return way(hidden, head, targets, jnp.float32(scale), blocks)


def _flat(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, blocks: Blocks, *axes: Axes
) -> Pair:
    flat = hidden.reshape(-1, hidden.shape[-1])
    sizes = Sizes(min(blocks[0], flat.shape[0]), min(blocks[1], head.shape[0]), *axes)
    logps, entropies = _blocked(flat, head, targets.reshape(-1), scale, sizes)
    return logps.reshape(targets.shape), entropies.reshape(targets.shape)


def _spread(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, blocks: Blocks) -> Pair:
    """`_flat` over the current mesh: no device sees other rows than its own, and none the whole vocabulary where the
    mesh splits it; a width that is split is gathered block by block, and its gradient scattered back.
    """
    columns, parts = targets.shape[1], size_of("length")
    fill = ((0, 0), (0, -columns % parts))
    hidden, targets = jnp.pad(hidden, (*fill, (0, 0))), jnp.pad(targets, fill)
    rows = activation_spec(("batch", "length", None), hidden.shape)
    marks, mine = PartitionSpec(*rows[:2]), set(axes_of(rows))
    vocab, width = activation_spec(("vocab", "embed"), head.shape)
    split = axes_of((vocab,)) if mine.isdisjoint(axes_of((vocab,))) else ()
    gathered = axes_of((width,)) if mine.issuperset(axes_of((width,))) else ()
    table = PartitionSpec(split or None, gathered or None)

    def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> Pair:
        head = varying(head, sorted(mine.difference(gathered)))
        return _flat(hidden, head, targets, scale, blocks, split, gathered)

    spread = jax.shard_map(local, in_specs=(rows, table, marks), out_specs=(marks, marks))
    logps, entropies = spread(hidden, head, targets)
    return logps[:, :columns], entropies[:, :columns]


def _slice(x: jax.Array, start: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Rows start .. start+block of x, the last block moved back to fit; and which rows are not repeats."""
    begin = jnp.minimum(start, x.shape[0] - block)
    rows = jax.lax.dynamic_slice_in_dim(x, begin, block)
    return rows, begin + jnp.arange(block) >= start


def _loop(length: int, block: int, body: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
    """Runs body(start, carry) over the blocks; a single block needs no loop."""
    if length <= block:
        return body(jnp.int32(0), carry)
    return jax.lax.fori_loop(0, -(-length // block), lambda i, c: body(i * block, c), carry)


def _weights(head: jax.Array, start: jax.Array, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """A block of the head in its whole width, and which of its rows are not repeats."""
    weights, fresh = _slice(head, start, sizes.vocab)
    if sizes.gathered:
        weights = jax.lax.all_gather(weights, sizes.gathered, axis=1, tiled=True)
    return weights, fresh


def _put(x: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    begin = jnp.minimum(start, x.shape[0] - rows.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(x, rows, begin, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: Sizes) -> Pair:
    return _forward(hidden, head, targets, scale, sizes)[0]


def _forward(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: Sizes) -> tuple[Any, Any]:
    """Running sums of every token's softmax, block of the vocabulary by block."""
    (N, _), V = hidden.shape, head.shape[0]
    mine = _mine(targets, V, sizes.over)

    def vocab_block(start: jax.Array, sums: Sums) -> Sums:
        weights, fresh = _weights(head, start, sizes)

        def time_block(at: jax.Array, sums: Sums) -> Sums:
            rows, new = _slice(hidden, at, sizes.time)
            z = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32)
            column = _slice(mine, at, sizes.time)[0] - jnp.minimum(start, V - sizes.vocab)
            old: Any = tuple(_slice(x, at, sizes.time)[0] for x in sums)
            found = zip(_added(old, jnp.where(fresh, z, -jnp.inf), column), old, sums, strict=True)
            return tuple(_put(x, jnp.where(new, added, was), at) for added, was, x in found)  # type: ignore[return-value]

        return _loop(N, sizes.time, time_block, sums)

    zero = varying(jnp.zeros_like(hidden[:, 0], jnp.float32), sizes.over)
    sums = _loop(V, sizes.vocab, vocab_block, (zero - jnp.inf, zero, zero, zero))
    top, total, weighted, chosen = _together(sizes.over, *sums)
    lse = top + jnp.log(total)
    entropies = lse - weighted / total
    return (chosen - lse, entropies), (hidden, head, targets, scale, lse, entropies)


def _added(sums: Sums, z: jax.Array, column: jax.Array) -> Sums:
    """The sums of some tokens after logits z [n, v] of one block, -inf where they are no part of it."""
    top, total, weighted, chosen = sums
    new_top = jnp.maximum(top, z.max(-1))
    shrink, e = jnp.exp(top - new_top), jnp.exp(z - new_top[:, None])
    weighted = weighted * shrink + jnp.sum(e * jnp.where(jnp.isneginf(z), 0.0, z), -1)
    picked = jnp.take_along_axis(z, jnp.clip(column, 0, z.shape[1] - 1)[:, None], 1)[:, 0]
    here = (column >= 0) & (column < z.shape[1]) & ~jnp.isneginf(picked)
    return new_top, total * shrink + e.sum(-1), weighted, jnp.where(here, picked, chosen)


def _backward(sizes: Sizes, saved: Any, gradients: Pair) -> Any:
    """dz = g_logp (onehot - p) - g_entropy p (log p + H), block by block; the scale is a constant."""
    hidden, head, targets, scale, lse, entropies = saved
    (N, _), V = hidden.shape, head.shape[0]
    per_token = (_mine(targets, V, sizes.over), lse, entropies, *gradients)

    def vocab_block(start: jax.Array, carry: Any) -> Any:
        weights, fresh = _weights(head, start, sizes)

        def time_block(at: jax.Array, carry: Any) -> Any:
            d_hidden, d_weights = carry
            rows, new = _slice(hidden, at, sizes.time)
            wanted, lse, entropy, g_logp, g_entropy = (_slice(x, at, sizes.time)[0][:, None] for x in per_token)
            logp = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32) - lse
            p = jnp.exp(logp)
            onehot = wanted - jnp.minimum(start, V - sizes.vocab) == jnp.arange(sizes.vocab)
            dz = g_logp * (onehot - p) - g_entropy * p * (logp + entropy)
            dz = (scale * dz * fresh * new[:, None]).astype(rows.dtype)
            more = jnp.einsum("nv,vd->nd", dz, weights, preferred_element_type=jnp.float32)
            d_hidden = _put(d_hidden, _slice(d_hidden, at, sizes.time)[0] + more, at)
            return d_hidden, d_weights + jnp.einsum("nv,nd->vd", dz, rows, preferred_element_type=jnp.float32)

        d_hidden, d_head = carry
        nothing = jnp.zeros_like(weights, jnp.float32)
        d_hidden, d_weights = _loop(N, sizes.time, time_block, (d_hidden, nothing))
        d_weights = d_weights.astype(head.dtype)
        if sizes.gathered:
            d_weights = jax.lax.psum_scatter(d_weights, sizes.gathered, scatter_dimension=1, tiled=True)
        return d_hidden, _put(d_head, _slice(d_head, start, sizes.vocab)[0] + d_weights, start)

    start = (varying(jnp.zeros_like(hidden, jnp.float32), sizes.over), jnp.zeros_like(head))
    d_hidden, d_head = _loop(V, sizes.vocab, vocab_block, start)
    d_hidden = jax.lax.psum(d_hidden, sizes.over) if sizes.over else d_hidden
    return d_hidden.astype(hidden.dtype), d_head, None, jnp.zeros_like(scale)


_blocked.defvjp(_forward, _backward)


def _mine(targets: jax.Array, vocabulary: int, over: Axes) -> jax.Array:
    """Targets as rows of this device's part of the vocabulary; those of other parts lie outside."""
    return targets - jax.lax.axis_index(over) * vocabulary if over else targets


def _together(over: Axes, top: jax.Array, total: jax.Array, weighted: jax.Array, chosen: jax.Array) -> Sums:
    """What the parts of a vocabulary that is split over devices add up to."""
    if not over:
        return top, total, weighted, chosen
    highest = jax.lax.pmax(top, over)
    shrink = jnp.exp(top - highest)
    return highest, *(jax.lax.psum(x, over) for x in (total * shrink, weighted * shrink, chosen))
