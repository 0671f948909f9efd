"""How many iterations a training pass runs (2502.05171, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from settings.model_parts import RecurrentConfig


def draw_depth(config: RecurrentConfig, key: jax.Array, rows: int, mean: float | None = None) -> jax.Array:
    """The number of iterations of a training pass, at least 1: int32, () or [rows] (section 3.3).

    `mean` stands in for `config.mean` where it rises in training. ValueError where rows should have brought theirs
    (data/depths.py).
    """
    mean = config.mean if mean is None else mean
    if config.draw == "task":
        raise ValueError(
            'recurrent.draw="task" takes the depth of every row from its example, and these rows have none'
        )
    rate_key, count_key = jax.random.split(key)
    shape = (rows,) if config.per_sequence else ()
    if config.draw == "fixed":
        return jnp.full(shape, round(mean), jnp.int32)
    if config.draw == "poisson":
        return 1 + jax.random.poisson(count_key, mean - 1.0, shape)
    noise = jax.random.normal(rate_key, shape) * config.sigma
    return 1 + jax.random.poisson(count_key, mean * jnp.exp(noise - config.sigma**2 / 2))
