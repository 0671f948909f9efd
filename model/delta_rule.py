"""The gated delta rule (2412.06464): a matrix that forgets, corrects what it holds under a key, and is read by queries;
all columns of a chunk at once (2406.06484), or one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.sharding import activation_spec, axes_of, varying

EXACT = jax.lax.Precision.HIGHEST  # errors of a state stay in it: no bf16 or TF32 in its products


class Steps(NamedTuple):
    """What every column does to the state: q, k [B, K, S, D], v [B, K, G, S, V], `decay` (the logarithm of what is
    kept, <= 0) and `rate` (of the correction) [B, K, G, S], all fp32; `fresh` [B, S]: it begins from nothing.

    K are heads of keys, G the heads of values that share one.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    decay: jax.Array
    rate: jax.Array
    fresh: jax.Array


def one_step(state: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
    """One column: S <- e^decay S, then S <- S + k (rate (v - S'k))', and S'q is read; state [B, K, G, D, V] ->
    (state, y [B, K, G, 1, V]). Source: 2412.06464, equation 10.
    """
    q, k, v, decay, rate = (
        steps.q[:, :, 0],
        steps.k[:, :, 0],
        steps.v[..., 0, :],
        steps.decay[..., 0],
        steps.rate[..., 0],
    )
    kept = jnp.where(steps.fresh[:, :1, None], 0.0, jnp.exp(decay))
    state = kept[..., None, None] * state
    held = jnp.einsum("bkd,bkgdv->bkgv", k, state, precision=EXACT)
    state = state + k[:, :, None, :, None] * (rate[..., None] * (v - held))[..., None, :]
    return state, jnp.einsum("bkd,bkgdv->bkgv", q, state, precision=EXACT)[..., None, :]


class Chunks(NamedTuple):
    """Chunks of C columns, their number N first, as functions of the state S before each.

    With u = writes - reads S: the output is queries S + scores u, and the state after it is kept S + keys' u. queries,
    keys, reads [N, B, K, G, C, D], writes [N, B, K, G, C, V], scores [N, B, K, G, C, C], kept [N, B, K, G].
    """

    queries: jax.Array
    keys: jax.Array
    reads: jax.Array
    writes: jax.Array
    scores: jax.Array
    kept: jax.Array


def in_chunks(steps: Steps, size: int) -> Chunks:
    """Columns in chunks of `size`, a power of two; the last is filled up with columns that change nothing.

    The corrections u_i = rate_i (v_i - S_i'k_i) of a chunk solve (1 + A) u = rate (v - e^decay k S), where, for j < i,
    A_ij = rate_i e^(decays from j to i) k_i'k_j. Source: 2412.06464, section 3.3.
    """
    q, k = (_cut(x, size, 2) for x in (steps.q, steps.k))
    v, decay, rate = (_cut(x, size, 3) for x in (steps.v, steps.decay, steps.rate))
    part = jnp.cumsum(_cut(steps.fresh.astype(jnp.int32), size, 1), -1)[:, :, None, None]
    seen = jnp.tril(part[..., :, None] == part[..., None, :])
    # Sums from column to column: differences of one running sum lose digits behind a strong decay.
    between = jnp.cumsum(jnp.tril(jnp.broadcast_to(decay[..., None], (*decay.shape, size)), -1), -2)
    fade = jnp.exp(jnp.where(seen, between, -jnp.inf))
    still = jnp.where(part == 0, jnp.exp(jnp.cumsum(decay, -1)), 0.0)  # of the state before the chunk
    alike, asked = (jnp.einsum("nbkid,nbkjd->nbkij", x, k, precision=EXACT)[:, :, :, None] for x in (k, q))
    inverse = unit_inverse(jnp.tril(rate[..., None] * fade * alike, -1))
    q, k = q[:, :, :, None], k[:, :, :, None]
    reads = jnp.matmul(inverse, (rate * still)[..., None] * k, precision=EXACT)
    writes = jnp.matmul(inverse, rate[..., None] * v, precision=EXACT)
    return Chunks(still[..., None] * q, fade[..., -1, :, None] * k, reads, writes, fade * asked, still[..., -1])


def unit_inverse(a: jax.Array) -> jax.Array:
    """(1 + a)^-1 of strictly lower triangular matrices a [..., C, C], C a power of two.

    From the inverses of blocks on the diagonal to those of twice their size: products alone, which every platform has
    and a mesh can split, log2(C) of them in a row.
    """
    size, lead = a.shape[-1], a.shape[:-2]
    inverse = jnp.ones((*lead, size, 1, 1), a.dtype)
    for half in (2**i for i in range(size.bit_length() - 1)):
        pairs = size // (2 * half)
        blocks = a.reshape(*lead, pairs, 2, half, pairs, 2, half)[..., :, 1, :, :, 0, :]
        below = jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)
        first, second = jnp.moveaxis(inverse.reshape(*lead, pairs, 2, half, half), -3, 0)
        corner = -jnp.matmul(jnp.matmul(second, below, precision=EXACT), first, precision=EXACT)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, second], -1)], -2)
    return inverse[..., 0, :, :]


def run_chunks(chunks: Chunks, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One chunk after the other: state [B, K, G, D, V] -> (state, y [N, B, K, G, C, V])."""

    def step(state: jax.Array, chunk: Chunks) -> tuple[jax.Array, jax.Array]:
        u = chunk.writes - jnp.matmul(chunk.reads, state, precision=EXACT)
        y = jnp.matmul(chunk.queries, state, precision=EXACT) + jnp.matmul(chunk.scores, u, precision=EXACT)
        added = jnp.matmul(chunk.keys.swapaxes(-1, -2), u, precision=EXACT)
        return chunk.kept[..., None, None] * state + added, y

    return jax.lax.scan(step, state, chunks)


def gated_delta_rule(steps: Steps, start: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """All columns from the state `start` [B, K, G, D, V]: (y [B, K, G, S, V], the state after the last), fp32.

    Where the mesh splits columns, each device runs its own chunks twice: from nothing, for what they do to any state,
    and then from the state in which all columns before them end.
    """
    if steps.fresh.shape[1] == 1:
        state, y = one_step(start, steps)
        return y, state
    if jax.sharding.get_abstract_mesh().empty:
        return _columns(steps, start, chunk, ())
    rows, heads, columns, _ = activation_spec(("batch", "act_heads", "length", None), steps.q.shape)
    per_key = PartitionSpec(rows, heads, columns, None)
    per_value = PartitionSpec(rows, heads, None, columns)
    values, marks = PartitionSpec(*per_value, None), PartitionSpec(rows, columns)
    specs = (per_key, per_key, values, per_value, per_value, marks)
    states = PartitionSpec(rows, heads, None, None, None)
    ring = axes_of((columns,))

    def local(start: jax.Array, *parts: jax.Array) -> tuple[jax.Array, jax.Array]:
        steps = Steps(*parts)
        apart = varying(steps.fresh, axes_of((heads,)))
        return _columns(steps._replace(fresh=apart), start, chunk, ring)

    return jax.shard_map(local, in_specs=(states, *specs), out_specs=(values, states))(start, *steps)


def _columns(steps: Steps, start: jax.Array, chunk: int, ring: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """The rule over this device's columns, of those that the devices of `ring` have."""
    length = steps.fresh.shape[1]
    chunks = in_chunks(steps, min(chunk, 1 << (length - 1).bit_length()))
    start = varying(start, ring)
    if ring:
        start = _passed_on(chunks, start, ring)
    end, y = run_chunks(chunks, start)
    y = jnp.moveaxis(y, 0, 3).reshape(*start.shape[:3], -1, start.shape[-1])[:, :, :, :length]
    if ring:
        last = jax.lax.axis_index(ring) == jax.lax.axis_size(ring) - 1
        end = jax.lax.psum(jnp.where(last, end, 0.0), ring)
    return y, end


def _passed_on(chunks: Chunks, start: jax.Array, ring: tuple[str, ...]) -> jax.Array:
    """The state before this device's first column: `start` after the columns of all devices before it."""
    (*_, key, value) = start.shape
    blank = jnp.concatenate([jnp.zeros_like(start), jnp.zeros_like(start[..., :1]) + jnp.eye(key)], -1)
    wide = [(0, 0)] * (chunks.writes.ndim - 1) + [(0, key)]
    ends, _ = run_chunks(chunks._replace(writes=jnp.pad(chunks.writes, wide)), blank)
    every = jax.lax.all_gather(ends, ring)  # of each device: what its columns add, and what they make of any state
    for i in range(every.shape[0]):
        after = jnp.matmul(every[i][..., value:], start, precision=EXACT) + every[i][..., :value]
        start = jnp.where(i < jax.lax.axis_index(ring), after, start)
    return start


def _cut(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Cuts an axis into chunks, the last filled up with zeros, and puts their number first."""
    pad = [(0, -x.shape[axis] % size if i == axis else 0) for i in range(x.ndim)]
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)
