"""The recurrent state: its first value, and its injection with the prelude's output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.initial import cut_normal, weights
from model.linear import linear


def first_state(config: ModelConfig, e: jax.Array, positions: jax.Array, key: jax.Array | None) -> jax.Array:
    """s_0 [B, S, D]: zeros, the prelude's output, or noise of the deviation of embeddings.

    The noise belongs to a position (and, with a `key`, to a row): it is the same in a full pass and in decoding, and
    without a key in every call, so that a rollout and the update that learns from it see the same states.
    """
    if config.recurrent.start == "zero":
        return jnp.zeros_like(e)
    if config.recurrent.start == "embedding":
        return e

    def row(number: jax.Array, positions: jax.Array) -> jax.Array:
        base = jax.random.key(0) if key is None else jax.random.fold_in(key, number)
        return jax.vmap(lambda p: cut_normal(jax.random.fold_in(base, p), e.shape[-1:]))(positions)

    noise = jax.vmap(row)(jnp.arange(e.shape[0]), positions)
    return (noise * (config.init_std * config.embed_scale)).astype(e.dtype)


class Injection(nn.Module):
    """The map of state s and input e, [B, S, D] each, that begins an iteration."""

    config: ModelConfig

    @nn.compact
    def __call__(self, s: jax.Array, e: jax.Array) -> jax.Array:
        """(s, e) -> what the first layer of the core sees [B, S, D]."""
        kind, c = self.config.recurrent.injection, self.config
        if kind in ("none", "add"):
            return s if kind == "none" else s + e
        if kind == "diagonal":
            # Parcae (2604.12946): decay in (0, 1) channel by channel, so that the state cannot explode.
            step = jax.nn.softplus(self._vector("step", 0.0))
            decay = jnp.exp(-step * jnp.exp(self._vector("decay", 0.0)))
            driven = linear(e, self._kernel(c.d_model), ("mlp", "embed"), c.precision)
            return (decay * s + step * driven).astype(e.dtype)
        mixed = linear(jnp.concatenate([s, e], -1), self._kernel(2 * c.d_model), ("mlp", "embed"), c.precision)
        if kind == "concat":
            return mixed
        gate = jax.nn.sigmoid(mixed)
        return gate * s + (1 - gate) * e

    def _kernel(self, rows: int) -> jax.Array:
        init = nn.with_logical_partitioning(weights(self.config), ("mlp", "embed"))
        return self.param("kernel", init, (rows, self.config.d_model), jnp.dtype(self.config.param_dtype))

    def _vector(self, name: str, value: float) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.constant(value), ("norm",))
        return self.param(name, init, (self.config.d_model,), jnp.float32)
