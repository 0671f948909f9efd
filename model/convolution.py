"""Where segments begin, and short causal convolutions that stay inside of them: for mixers with a running state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def boundaries(segments: jax.Array, last: jax.Array) -> Pair:
    """Which columns hold the first token of a segment, [B, S] bool, and the segment of the last real token, [B].

    `last` [B] is the segment of the real token before the first column, 0 for none. Padding (0) interrupts nothing.
    """
    at = _latest(segments)
    held = jnp.where(at < 0, last[:, None], _columns(segments, at))
    before = jnp.concatenate([last[:, None], held[:, :-1]], 1)
    return (segments > 0) & (segments != before), held[:, -1]


def _latest(segments: jax.Array) -> jax.Array:
    """The last real column up to and including each one, -1 where there is none: [B, S] -> [B, S]."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(segments > 0, columns, -1), axis=1)


def _columns(x: jax.Array, at: jax.Array, missing: int = 0) -> jax.Array:
    """Columns `at` [B, T] of x [B, S, ...], `missing` where the index is -1."""
    taken = jax.vmap(lambda row, index: row[index])(x, jnp.maximum(at, 0))
    return jnp.where((at >= 0).reshape(*at.shape, *(1,) * (x.ndim - 2)), taken, missing)


def causal_convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, segments: jax.Array, last: jax.Array, tail: jax.Array
) -> Pair:
    """Depthwise convolution over the real tokens of one segment: x [B, S, D], kernel [W, D] whose last row meets x_t.

    `tail` [B, W - 1, D] holds the inputs before the first column, all of segment `last` [B], zeros for what never was.
    Returns (y [B, S, D], the next tail).
    """
    history = tail.shape[1]
    x = jnp.concatenate([tail.astype(x.dtype), x], 1)
    owner = jnp.concatenate([jnp.broadcast_to(last[:, None], tail.shape[:2]), segments], 1)
    at = _latest(owner)
    before = jnp.concatenate([jnp.full_like(at[:, :1], -1), at[:, :-1]], 1)
    held = _columns(owner, at)
    taps = []
    for _ in range(history + 1):
        same = _columns(owner, at) == held
        taps.append(jnp.where(same[..., None], _columns(x, at), 0))
        at = _columns(before, at, missing=-1)
    y = bias + sum(tap * row for tap, row in zip(taps, kernel[::-1], strict=True))
    new = [tap[:, -1:] for tap in taps[:history]]
    return y[:, history:], jnp.concatenate([tail[:, :0], *new[::-1]], 1, dtype=tail.dtype)
