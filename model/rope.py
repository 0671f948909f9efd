"""Rotary position embeddings: inverse frequencies of every published kind, and their application."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from model.config import RopeConfig


class Rotation(NamedTuple):
    """What turns a head: how many of its dimensions, and whether by `rope.local_theta`."""

    width: int
    local: bool


def rotation(rope: RopeConfig, width: int, window: int | None) -> Rotation:
    """How a layer turns `width` dimensions of a head: locally where it has a window and the model a base for those."""
    return Rotation(width, window is not None and rope.local_theta is not None)


def rotary_tables(
    rope: RopeConfig, turn: Rotation, max_length: int, positions: Int[Array, "B S"]
) -> tuple[Float[Array, "B S R"], Float[Array, "B S R"]]:
    """cos and sin of one rotation for positions [B, S]: two arrays [B, S, width / 2], float32."""
    kind = RopeConfig(theta=rope.local_theta) if turn.local and rope.local_theta else rope
    return rope_tables(dataclasses.replace(kind, partial=1.0), turn.width, max_length, positions)


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_length: int, length: int | None = None) -> np.ndarray:
    """Inverse frequencies [rotated / 2], float32.

    `length` is the sequence length in use: only dynamic and longrope depend on it (None = within the trained
    context).
    """
    dim = int(head_dim * rope.partial)
    exponent = np.arange(0, dim, 2, dtype=np.float64) / dim
    plain = rope.theta**-exponent
    kinds = {
        "default": lambda: plain,
        "linear": lambda: plain / rope.factor,
        "dynamic": lambda: _dynamic(rope, dim, exponent, max_length, length),
        "llama3": lambda: _llama3(rope, plain, max_length),
        "yarn": lambda: _yarn(rope, dim, plain, max_length),
        "longrope": lambda: plain / np.asarray(_longrope_factors(rope, max_length, length)),
    }
    return kinds[rope.kind]().astype(np.float32)


def attention_factor(rope: RopeConfig, max_length: int) -> float:
    """Multiplier on cos and sin (YaRN, 2309.00071 section 3.4; LongRoPE, 2402.13753)."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return yarn_scale(rope.factor, rope.mscale) / yarn_scale(rope.factor, rope.mscale_all_dim)
        return yarn_scale(rope.factor, 1.0)
    if rope.kind == "longrope":
        original = rope.original_length or max_length
        factor = rope.factor if rope.factor != 1 else max_length / original
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return 1.0


def yarn_scale(factor: float, mscale: float) -> float:
    """YaRN's square root of the attention temperature, m = 0.1 mscale ln(factor) + 1 (2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_tables(
    rope: RopeConfig, head_dim: int, max_length: int, positions: Int[Array, "B S"]
) -> tuple[Float[Array, "B S R"], Float[Array, "B S R"]]:
    """cos and sin for positions [B, S]: two arrays [B, S, rotated / 2], float32.

    Dynamic-NTK and longrope choose their frequencies by the longest position in the batch, as the reference
    does.
    """
    positions = positions.astype(jnp.float32)
    if rope.kind in ("dynamic", "longrope"):
        frequencies = _frequencies_by_length(rope, head_dim, max_length, positions.max() + 1)
    else:
        frequencies = jnp.asarray(inverse_frequencies(rope, head_dim, max_length))
    angles = positions[..., None] * frequencies
    scale = attention_factor(rope, max_length)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(
    x_BHSD: Float[Array, "B H S D"], cos: Float[Array, "B S R"], sin: Float[Array, "B S R"], interleaved: bool = False
) -> Float[Array, "B H S D"]:
    """Rotates the leading dimensions of each head; x [B, H, S, D] -> the same, cos and sin [B, S, R / 2]."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    x, rest = x_BHSD[..., : 2 * half], x_BHSD[..., 2 * half :]
    x = x.astype(jnp.float32)
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)
    else:
        first, second = x[..., :half], x[..., half:]
        rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return jnp.concatenate([rotated.astype(x_BHSD.dtype), rest], -1) if rest.shape[-1] else rotated.astype(x_BHSD.dtype)


def _frequencies_by_length(rope: RopeConfig, head_dim: int, max_length: int, length: jax.Array) -> jax.Array:
    dim = int(head_dim * rope.partial)
    if rope.kind == "longrope":
        short = inverse_frequencies(rope, head_dim, max_length, 1)
        long = inverse_frequencies(rope, head_dim, max_length, 2**31)
        return jnp.where(length > (rope.original_length or max_length), long, short)
    used = jnp.maximum(length, max_length)
    base = rope.theta * ((rope.factor * used / max_length) - (rope.factor - 1)) ** (dim / (dim - 2))
    return base ** -jnp.asarray(np.arange(0, dim, 2) / dim, jnp.float32)


def _dynamic(rope: RopeConfig, dim: int, exponent: np.ndarray, max_length: int, length: int | None) -> np.ndarray:
    used = max(length or 0, max_length)
    base = rope.theta * ((rope.factor * used / max_length) - (rope.factor - 1)) ** (dim / (dim - 2))
    return base**-exponent


def _llama3(rope: RopeConfig, plain: np.ndarray, max_length: int) -> np.ndarray:
    original = rope.original_length or max_length
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(rope: RopeConfig, dim: int, plain: np.ndarray, max_length: int) -> np.ndarray:
    original = rope.original_length or max_length

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction(rope.beta_fast), correction(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def _longrope_factors(rope: RopeConfig, max_length: int, length: int | None) -> tuple[float, ...]:
    long = length is not None and length > (rope.original_length or max_length)
    factors = rope.long_factor if long else rope.short_factor
    assert factors is not None
    return factors
