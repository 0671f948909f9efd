"""Measures of a recurrence: how far its state still moves, and how alike the states of tokens are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.depth.core import Recurred
from model.reports import Work


def change(new: jax.Array, old: jax.Array, segments: jax.Array) -> jax.Array:
    """(sum, count) over the real tokens of ||new - old|| / ||new||: [2] fp32."""
    wide = jax.lax.stop_gradient((new.astype(jnp.float32), old.astype(jnp.float32)))
    ratio = jnp.linalg.norm(wide[0] - wide[1], axis=-1) / jnp.maximum(jnp.linalg.norm(wide[0], axis=-1), 1e-30)
    real = segments > 0
    return jnp.stack([(ratio * real).sum(), real.sum().astype(jnp.float32)])


def correlation(s: jax.Array, segments: jax.Array) -> jax.Array:
    """(sum, count) over the rows of the mean cosine between the states of two tokens: 1 is collapse. [2] fp32."""
    wide, real = jax.lax.stop_gradient(s.astype(jnp.float32)), (segments > 0)[..., None]
    unit = wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-30) * real
    count = real.sum((1, 2))
    pairs = count * (count - 1)
    cosines = ((unit.sum(1) ** 2).sum(-1) - (unit**2).sum((1, 2))) / jnp.maximum(pairs, 1)
    several = pairs > 0
    return jnp.stack([(cosines * several).sum(), several.sum().astype(jnp.float32)])


def measures_of(result: Recurred, segments: jax.Array) -> dict[str, jax.Array]:
    """What a pass reports of its recurrence, pairs (sum, count): its depth, its last change, its correlation."""
    depth = jnp.stack([result.depth.sum(), jnp.asarray(result.depth.size)]).astype(jnp.float32)
    return {"depth": depth, "change": result.change, "correlation": correlation(result.state, segments)}


def work_of(segments: jax.Array, depth: jax.Array | None = None, grad_steps: int = 0) -> Work:
    """What a pass over columns of these segments [B, S] did; `depth` [B]: the iterations of every row of a recurrent
    core, of which the last `grad_steps` carry gradient.
    """
    real = (segments > 0).sum(1).astype(jnp.float32)
    if depth is None:
        return Work(real.sum())
    return Work(real.sum(), (real * depth).sum(), (real * jnp.minimum(depth, grad_steps)).sum())
