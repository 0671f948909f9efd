"""How weights begin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig

CUT = 3.0  # standard deviations


def weights(config: ModelConfig, std: float | None = None) -> nn.initializers.Initializer:
    """Normal with deviation `std` (None: `init_std`); with `init="truncated"` without what lies beyond 3 of them."""
    deviation = config.init_std if std is None else std
    if config.init == "normal":
        return nn.initializers.normal(deviation)
    return lambda key, shape, dtype=jnp.float32: cut_normal(key, shape) * jnp.asarray(deviation, dtype)


def cut_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1) restricted to [-3, 3], fp32."""
    return jax.random.truncated_normal(key, -CUT, CUT, shape)
