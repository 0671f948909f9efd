"""Normalisation: statistics in fp32, then cast back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from model.config import ModelConfig


def rms_norm(x: Float[Array, "*N D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*N D"]:
    """RMSNorm over the last axis (1910.07467); x [..., D], scale [D]; fp32 inside, x.dtype out."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*N D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*N D"]:
    """LayerNorm over the last axis (1607.06450); x [..., D], scale and bias [D]; fp32 inside, x.dtype out."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, -1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Norm(nn.Module):
    """Declares the parameters of one norm over an axis with the logical name `axis`.

    `plus_one`: it multiplies by 1 + its scale, which begins at 0.
    """

    kind: str
    eps: float
    axis: str
    param_dtype: str = "float32"
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, init: nn.initializers.Initializer) -> jax.Array:
            boxed = nn.with_logical_partitioning(init, (self.axis,))
            return self.param(name, boxed, (x.shape[-1],), jnp.dtype(self.param_dtype))

        scale = vector("scale", nn.initializers.zeros if self.plus_one else nn.initializers.ones)
        if self.plus_one:  # in fp32: what a small scale adds to 1 is lost in bf16
            scale = 1.0 + scale.astype(jnp.float32)
        if self.kind == "rmsnorm":
            return rms_norm(x, scale, self.eps)
        return layer_norm(x, scale, vector("bias", nn.initializers.zeros), self.eps)


def norm_of(config: ModelConfig, kind: str | None = None, eps: float | None = None, **rest: Any) -> Norm:
    """A norm as this model has them, of another `kind` or `eps` where given; `rest` are its name or parent."""
    kind, eps = kind or config.norm_type, config.norm_eps if eps is None else eps
    return Norm(kind, eps, "norm", config.param_dtype, config.norm_plus_one, **rest)
