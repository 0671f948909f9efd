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
    """Blocks of `time` x `vocab`; `over` the mesh axes that split the vocabulary."""

    time: int
    vocab: int
    over: Axes = ()


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
    hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, blocks: Blocks, over: Axes = ()
) -> Pair:
    flat = hidden.reshape(-1, hidden.shape[-1])
    sizes = Sizes(min(blocks[0], flat.shape[0]), min(blocks[1], head.shape[0]), over)
    logps, entropies = _blocked(flat, head, targets.reshape(-1), scale, sizes)
    return logps.reshape(targets.shape), entropies.reshape(targets.shape)


def _spread(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, blocks: Blocks) -> Pair:
    """`_flat` over the current mesh: no device sees other rows than its own, and none the whole vocabulary where the
    mesh splits it; a width that is split is gathered, and its gradient scattered back.
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
        if gathered:
            head = jax.lax.all_gather(head, gathered, axis=1, tiled=True)
        head = varying(head, sorted(mine.difference(gathered)))
        return _flat(hidden, head, targets, scale, blocks, split)

    spread = jax.shard_map(local, in_specs=(rows, table, marks), out_specs=(marks, marks))
    logps, entropies = spread(hidden, head, targets)
    return logps[:, :columns], entropies[:, :columns]


def _starts(length: int, block: int) -> jax.Array:
    return jnp.arange(-(-length // block)) * block


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


def _put(x: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    begin = jnp.minimum(start, x.shape[0] - rows.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(x, rows, begin, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: Sizes) -> Pair:
    return _forward(hidden, head, targets, scale, sizes)[0]


def _forward(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: Sizes) -> tuple[Any, Any]:
    (N, _), V = hidden.shape, head.shape[0]
    time, vocab, over = sizes
    targets = _mine(targets, V, over)

    def vocab_block(start: jax.Array, carry: Any, rows: jax.Array, wanted: jax.Array) -> Any:
        top, total, weighted, chosen = carry
        weights, fresh = _slice(head, start, vocab)
        z = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32)
        z = jnp.where(fresh, z, -jnp.inf)
        new_top = jnp.maximum(top, z.max(-1))
        shrink, e = jnp.exp(top - new_top), jnp.exp(z - new_top[:, None])
        column = wanted - jnp.minimum(start, V - vocab)
        here = (column >= 0) & (column < vocab) & (wanted >= start)
        picked = jnp.take_along_axis(z, jnp.clip(column, 0, vocab - 1)[:, None], 1)[:, 0]
        weighted = weighted * shrink + jnp.sum(e * jnp.where(fresh, z, 0.0), -1)
        return new_top, total * shrink + e.sum(-1), weighted, jnp.where(here, picked, chosen)

    def time_block(start: jax.Array, carry: Any) -> Any:
        rows, _ = _slice(hidden, start, time)
        wanted, _ = _slice(targets, start, time)
        zero = varying(jnp.zeros_like(rows[:, 0], jnp.float32), over)
        body = functools.partial(vocab_block, rows=rows, wanted=wanted)
        top, total, weighted, chosen = _together(over, *_loop(V, vocab, body, (zero - jnp.inf, zero, zero, zero)))
        lse = top + jnp.log(total)
        return tuple(
            _put(x, new, start) for x, new in zip(carry, (chosen - lse, lse - weighted / total, lse), strict=True)
        )

    logps, entropies, lse = _loop(N, time, time_block, (jnp.zeros_like(hidden[:, 0], jnp.float32),) * 3)
    return (logps, entropies), (hidden, head, targets, scale, lse, entropies)


def _backward(sizes: Sizes, saved: Any, gradients: tuple[jax.Array, jax.Array]) -> Any:
    """dz = g_logp (onehot - p) - g_entropy p (log p + H), block by block; the scale is a constant."""
    hidden, head, targets, scale, lse, entropies = saved
    (N, _), V = hidden.shape, head.shape[0]
    time, vocab, over = sizes
    per_token = (targets, lse, entropies, *gradients)

    def vocab_block(start: jax.Array, carry: Any, rows: jax.Array, columns: Any, fresh_rows: jax.Array) -> Any:
        d_rows, d_head = carry
        wanted, row_lse, row_entropy, g_logp, g_entropy = columns
        weights, fresh = _slice(head, start, vocab)
        begin = jnp.minimum(start, V - vocab)
        logp = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32) - row_lse[:, None]
        p = jnp.exp(logp)
        onehot = (wanted[:, None] - begin) == jnp.arange(vocab)
        dz = g_logp[:, None] * (onehot - p) - g_entropy[:, None] * p * (logp + row_entropy[:, None])
        dz = (scale * dz * fresh * fresh_rows[:, None]).astype(rows.dtype)
        d_rows = d_rows + jnp.einsum("nv,vd->nd", dz, weights, preferred_element_type=jnp.float32)
        old, _ = _slice(d_head, start, vocab)
        return d_rows, _put(d_head, old + jnp.einsum("nv,nd->vd", dz, rows, preferred_element_type=jnp.float32), start)

    def time_block(start: jax.Array, carry: Any) -> Any:
        d_hidden, d_head = carry
        rows, fresh_rows = _slice(hidden, start, time)
        columns = tuple(_slice(x, start, time)[0] for x in per_token)
        body = functools.partial(vocab_block, rows=rows, columns=columns, fresh_rows=fresh_rows)
        d_rows, d_head = _loop(V, vocab, body, (varying(jnp.zeros_like(rows, jnp.float32), over), d_head))
        d_rows = jax.lax.psum(d_rows, over) if over else d_rows
        old, _ = _slice(d_hidden, start, time)
        return _put(d_hidden, old + d_rows.astype(hidden.dtype), start), d_head

    start = (jnp.zeros_like(hidden), jnp.zeros_like(head, jnp.float32))
    d_hidden, d_head = _loop(N, time, time_block, start)
    return d_hidden, d_head.astype(head.dtype), None, jnp.zeros_like(scale)


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
