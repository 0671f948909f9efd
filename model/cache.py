"""The key/value cache: a bag of keys that know their positions.

Every column carries its position and its segment (0 = empty), so left padding, rows of different lengths, and
columns reused by a newly seated sample are all the same case: attention masks by position and segment, never
by column.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from model.sharding import constrain


@flax.struct.dataclass
class Cache:
    """Decode state.

    `layers` holds one pytree per layer; `positions`, `segments` [B, L]; `index` the next column to write.
    """

    layers: tuple[Any, ...]
    positions: jax.Array
    segments: jax.Array
    index: jax.Array


def empty_cache(layers: tuple[Any, ...], batch: int, length: int) -> Cache:
    """A cache of `length` empty columns around the layers' own state."""
    positions, segments = (constrain(jnp.zeros((batch, length), jnp.int32), "batch", "cache_length") for _ in range(2))
    return Cache(layers, positions, segments, jnp.zeros((), jnp.int32))


def advance(cache: Cache, positions: jax.Array, segments: jax.Array) -> Cache:
    """Marks columns index .. index+S as holding these positions and segments [B, S]; mixers write the layers."""
    at = (0, cache.index)
    return dataclasses.replace(
        cache,
        positions=jax.lax.dynamic_update_slice(cache.positions, positions, at),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments, at),
    )


def write_columns(buffer: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """Writes new [B, K, S, D] into buffer [B, K, L, D] at column `index`."""
    return jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (0, 0, index, 0))
