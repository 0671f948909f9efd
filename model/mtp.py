"""Multi-token prediction (DeepSeek-V3, 2412.19437 section 2.2): modules that look one token further each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.block import Block
from model.config import ModelConfig
from model.context import Context
from model.initial import weights
from model.linear import linear
from model.norms import norm_of
from model.remat import module, policy_of
from model.reports import Reports


class MTP(nn.Module):
    """One module: norms of the embedding and of the state below, their projection, a block, and a norm.

    The released weights order the concatenation [embedding ; state], the reverse of the paper's equation 21, and hand
    the normed output both to the shared head and to the next module. The block is that of the last layer.
    """

    config: ModelConfig
    train: bool = False

    @nn.compact
    def __call__(
        self, hidden: jax.Array, embedded: jax.Array, context: Context, state: Any
    ) -> tuple[jax.Array, Any, Reports]:
        """hidden (after its norm) and embedded (the token one further) [B, S, D] -> (hidden, state, reports)."""
        c = self.config

        def norm(name: str, x: jax.Array) -> jax.Array:
            return norm_of(c, name=name)(x)

        joined = jnp.concatenate([norm("embed_norm", embedded), norm("hidden_norm", hidden)], -1)
        init = nn.with_logical_partitioning(weights(c), ("mlp", "embed"))
        kernel = self.param("proj", init, (2 * c.d_model, c.d_model), jnp.dtype(c.param_dtype)).astype(c.dtype)
        block = module(Block, policy_of(c))(c, c.n_layers - 1, self.train, name="block")
        x, state, reports = block(linear(joined, kernel, ("mlp", "embed"), c.precision), context, state)
        return norm("norm", x), state, reports


def look_ahead(tokens: jax.Array, segments: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The tokens k columns further, and the segments with 0 where that column is another segment's; [B, S] each."""
    shifted = [jnp.pad(x[:, k:], ((0, 0), (0, min(k, x.shape[1])))) for x in (tokens, segments)]
    return shifted[0], jnp.where(shifted[1] == segments, segments, 0)
