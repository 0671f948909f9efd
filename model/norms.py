"""Normalisation: statistics in fp32, then cast back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


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
    """Declares the parameters of one norm over an axis with the logical name `axis`."""

    kind: str
    eps: float
    axis: str
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, init: nn.initializers.Initializer) -> jax.Array:
            boxed = nn.with_logical_partitioning(init, (self.axis,))
            return self.param(name, boxed, (x.shape[-1],), jnp.dtype(self.param_dtype))

        scale = vector("scale", nn.initializers.ones)
        if self.kind == "rmsnorm":
            return rms_norm(x, scale, self.eps)
        return layer_norm(x, scale, vector("bias", nn.initializers.zeros), self.eps)
