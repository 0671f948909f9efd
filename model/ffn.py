"""Dense feed-forwards: the gated linear unit (2002.05202) and the plain two-layer perceptron."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.sharding import constrain

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class FeedForward(nn.Module):
    """down(act(gate x) * up x) when `gated`, else down(act(up x)); x [B, S, D] -> [B, S, D]."""

    config: ModelConfig
    gated: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        activate = ACTIVATION_FUNCTIONS[c.activation]
        up = self._linear(x, "up", c.d_ff, ("embed", "mlp"), c.init_std)
        if self.gated:
            up = activate(self._linear(x, "gate", c.d_ff, ("embed", "mlp"), c.init_std)) * up
        else:
            up = activate(up)
        up = constrain(up, "batch", "length", "act_mlp")
        return self._linear(up, "down", c.d_model, ("mlp", "embed"), c.init_std / (2 * c.n_layers) ** 0.5)

    def _linear(self, x: jax.Array, name: str, width: int, axes: tuple[str, str], std: float) -> jax.Array:
        c = self.config
        store = jnp.dtype(c.param_dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(std), axes)
        y = x @ self.param(name, init, (x.shape[-1], width), store).astype(c.dtype)
        if c.mlp_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            y = y + self.param(f"{name}_bias", init, (width,), store).astype(c.dtype)
        return y
