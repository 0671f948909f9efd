"""Dense feed-forwards: the gated linear unit (2002.05202) and the plain two-layer perceptron."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.hooks import hook_point
from model.initial import weights
from model.linear import linear
from model.reports import Reports
from model.sharding import constrain

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Gating(NamedTuple):
    """How a gate and what it multiplies are joined (settings/model.py: `activation`, `glu_limit`, `glu_offset`)."""

    activation: str
    limit: float | None = None
    offset: float = 0.0


def gating_of(config: ModelConfig) -> Gating:
    """That of all gated units of a model."""
    return Gating(config.activation, config.glu_limit, config.glu_offset)


def gated(gate: jax.Array, up: jax.Array, how: Gating) -> jax.Array:
    """act(gate) * (up + offset), after gate <= limit and |up| <= limit; of any shape."""
    if how.limit is not None:
        gate, up = jnp.minimum(gate, how.limit), jnp.clip(up, -how.limit, how.limit)
    return ACTIVATION_FUNCTIONS[how.activation](gate) * (up + how.offset if how.offset else up)


class FeedForward(nn.Module):
    """down(act(gate x) * up x) when `gated`, else down(act(up x)), of hidden `width` (0: d_ff)."""

    config: ModelConfig
    gated: bool
    width: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, Reports]:
        """x [B, S, D] -> (y [B, S, D], no reports): a dense layer treats every token alike."""
        del segments, train
        c = self.config
        width = self.width or c.d_ff
        up = self._linear(x, "up", width, ("embed", "mlp"), c.init_std)
        gate = self._linear(x, "gate", width, ("embed", "mlp"), c.init_std) if self.gated else None
        up = ACTIVATION_FUNCTIONS[c.activation](up) if gate is None else gated(gate, up, gating_of(c))
        up = hook_point(self, "ffn.hidden", constrain(up, "batch", "length", "act_mlp"))
        return self._linear(up, "down", c.d_model, ("mlp", "embed"), c.residual_std), Reports()

    def _linear(self, x: jax.Array, name: str, width: int, axes: tuple[str, str], std: float) -> jax.Array:
        c = self.config
        store = jnp.dtype(c.param_dtype)
        init = nn.with_logical_partitioning(weights(c, std), axes)
        y = linear(x, self.param(name, init, (x.shape[-1], width), store), axes, c.precision)
        if c.mlp_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            y = y + self.param(f"{name}_bias", init, (width,), store).astype(c.dtype)
        return y
