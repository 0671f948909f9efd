"""Multi-head latent attention (DeepSeek-V2, 2405.04434 section 2.1; DeepSeek-V3, 2412.19437 section 2.1.1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attention import attend, attention_mask, attention_weights, mix, weigh
from model.cache import write_columns
from model.config import MLAConfig, ModelConfig
from model.context import Context
from model.hooks import asks, hook_point, replaces
from model.initial import weights
from model.linear import linear
from model.norms import norm_of
from model.precision import operands
from model.rope import apply_rope, rotation, yarn_scale
from model.sharding import constrain

# Both latents are normalised with this whatever `norm_eps` says, as in the checkpoints' own code and transformers.
LATENT_NORM_EPS = 1e-6


def softmax_scale(config: ModelConfig) -> float:
    """The multiplier of the scores: 1 / sqrt(key width), times m^2 under YaRN with `mscale_all_dim`.

    m = 0.1 mscale_all_dim ln(factor) + 1 (2309.00071 section 3.4: the temperature divides query and key alike, hence
    the square); cos and sin carry `rope.attention_factor`'s ratio only, which is 1 in every published checkpoint.
    """
    # transformers 5.23 does this for V2 and V3 alike, as V2's own code does; DeepSeek-V3's inference code takes
    # `mscale` in place of `mscale_all_dim` (they are equal) and leaves YaRN out up to the original length.
    scale = (config.mla.nope_dim + config.mla.rope_dim) ** -0.5
    if config.rope.kind != "yarn" or not config.rope.mscale_all_dim:
        return scale
    return scale * yarn_scale(config.rope.factor, config.rope.mscale_all_dim) ** 2


class Numerics(NamedTuple):
    """How a core computes: a name in PRECISIONS, and the implementation of attention that `attend` takes."""

    precision: str = "high"
    attention: str = "auto"


DEFAULT_NUMERICS = Numerics()


def naive(
    q: jax.Array,
    latent: jax.Array,
    shared: jax.Array,
    kv_up: jax.Array,
    context: Context,
    window: int | None,
    scale: float,
    numerics: Numerics = DEFAULT_NUMERICS,
) -> jax.Array:
    """Attention over keys and values expanded from the latents.

    q [B, H, S, nope + rope], latent [B, 1, L, R], shared (the rotated key of all heads) [B, 1, L, rope],
    kv_up [R, H, nope + v] -> [B, H, S, v].
    """
    (B, _, L, R), H, P = latent.shape, q.shape[1], shared.shape[-1]
    nope = q.shape[-1] - P
    expanded = linear(latent[:, 0], kv_up.reshape(R, -1), ("latent", "heads"), numerics.precision)
    expanded = expanded.reshape(B, L, H, -1).swapaxes(1, 2)
    columns = "length" if context.index is None else "cache_length"
    expanded = constrain(expanded, "batch", "act_heads", columns, None)
    keys = jnp.concatenate([expanded[..., :nope], jnp.broadcast_to(shared, (B, H, L, P))], -1)
    return attend(q, keys, expanded[..., nope:], context, window, scale, numerics.attention)


def absorbed(
    q: jax.Array,
    latent: jax.Array,
    shared: jax.Array,
    kv_up: jax.Array,
    context: Context,
    window: int | None,
    scale: float,
    numerics: Numerics = DEFAULT_NUMERICS,
) -> jax.Array:
    """`naive`, with the queries taken to the latents: multi-query attention that reads R + rope numbers per token.

    q·(U_k c) = (U_k' q)·c, and a mean of U_v c is U_v applied to the mean of c (2405.04434 appendix C).
    """
    latent, kv_up = operands(latent, kv_up, numerics.precision)
    nope = q.shape[-1] - shared.shape[-1]
    wide: dict[str, Any] = {"preferred_element_type": jnp.float32}
    lowered = jnp.einsum("bhsn,rhn->bhsr", q[..., :nope], kv_up[..., :nope], **wide) * scale
    turned = q[..., nope:].astype(jnp.float32) * scale
    # Two products: the latents and the shared key stay where the cache has them, and are never joined.
    scores = jnp.einsum("bhsr,blr->bhsl", lowered.astype(latent.dtype), latent[:, 0], **wide)
    scores = scores + jnp.einsum("bhsp,blp->bhsl", turned.astype(shared.dtype), shared[:, 0], **wide)
    mixed = mix(scores, latent, attention_mask(context, window)).astype(q.dtype)
    return jnp.einsum("bhsr,rhv->bhsv", mixed, kv_up[..., nope:], **wide).astype(q.dtype)


def in_latents(q: jax.Array, latent: jax.Array, shared: jax.Array, kv_up: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries [B, H, S, R + rope] and keys [B, 1, L, R + rope] whose products are the scores, as in `absorbed`."""
    nope = q.shape[-1] - shared.shape[-1]
    lowered = jnp.einsum("bhsn,rhn->bhsr", q[..., :nope], kv_up[..., :nope]).astype(q.dtype)
    return jnp.concatenate([lowered, q[..., nope:]], -1), jnp.concatenate([latent, shared], -1)


def absorbing_pays(queries: int, keys: int, mla: MLAConfig) -> bool:
    """Whether `absorbed` multiplies less than `naive`: wider scores and values against expanding the old keys."""
    expanded = mla.nope_dim + mla.v_dim
    return queries * keys * (2 * mla.kv_rank - expanded) < (keys - queries) * mla.kv_rank * expanded


class MLA(nn.Module):
    """Declares the projections of one latent attention layer and calls the functions above."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, window: int | None, state: Any) -> tuple[jax.Array, Any]:
        """x [B, S, D], keys seen back, state {latent, rope} or None -> (y [B, S, D], new state)."""
        c, m = self.config, self.config.mla
        check_supported(c)
        q = self._queries(x)
        latent, shared = self._latents(x)
        if context.rope:
            table = context.rope[rotation(c.rope, m.rope_dim, window)]
            turned = apply_rope(q[..., m.nope_dim :], *table, c.rope.interleaved)
            q = jnp.concatenate([q[..., : m.nope_dim], turned], -1)
            shared = apply_rope(shared, *table, c.rope.interleaved)
        kv_up = self._weight("kv_up", (m.kv_rank, c.n_heads, m.nope_dim + m.v_dim), ("latent", "heads", "head_dim"))
        if context.index is not None:
            new = {"latent": latent, "rope": shared}
            state = {name: write_columns(state[name], new[name], context.index) for name in new}
            latent, shared = (state[name].astype(q.dtype) for name in new)
        absorbs = context.index is not None and absorbing_pays(q.shape[2], latent.shape[2], m)
        core, numerics = absorbed if absorbs else naive, Numerics(c.precision, c.attention)
        mixed = core(q, latent, shared, kv_up, context, window, softmax_scale(c), numerics)
        if asks(context.hooks, "attention.weights"):
            pair = in_latents(q, latent, shared, kv_up)
            shares = attention_weights(*pair, context, window, softmax_scale(c), c.attention)
            shares = hook_point(self, "attention.weights", shares)
            if replaces(context.hooks, "attention.weights"):
                mixed = jnp.einsum("bhsr,rhv->bhsv", weigh(shares, latent), kv_up[..., m.nope_dim :]).astype(q.dtype)
        return hook_point(self, "attention.out", self._output(mixed)), state

    def _weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None = None) -> jax.Array:
        c = self.config
        init = nn.with_logical_partitioning(weights(c, std), axes)
        return self.param(name, init, shape, jnp.dtype(c.param_dtype)).astype(c.dtype)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return norm_of(self.config, "rmsnorm", LATENT_NORM_EPS, name=name)(x)

    def _queries(self, x: jax.Array) -> jax.Array:
        """x [B, S, D] -> [B, H, S, nope + rope]."""
        c, m = self.config, self.config.mla
        width = m.nope_dim + m.rope_dim
        name, axis = "q", "embed"
        if m.q_rank:
            kernel = self._weight("q_down", (c.d_model, m.q_rank), ("embed", "rank"))
            x = linear(x, kernel, ("embed", "rank"), c.precision)
            x = self._norm("q_norm", x)
            name, axis = "q_up", "latent"
        kernel = self._weight(name, (x.shape[-1], c.n_heads, width), (axis, "heads", "head_dim"))
        q = linear(x, kernel.reshape(x.shape[-1], -1), (axis, "heads"), c.precision)
        q = q.reshape(*x.shape[:2], c.n_heads, width)
        return constrain(q.swapaxes(1, 2), "batch", "act_heads", "length", None)

    def _latents(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, S, D] -> the normalised latent [B, 1, S, R] and the key all heads share [B, 1, S, rope], unrotated."""
        c, m = self.config, self.config.mla
        kernel = self._weight("kv_down", (c.d_model, m.kv_rank + m.rope_dim), ("embed", "rank"))
        both = linear(x, kernel, ("embed", "rank"), c.precision)[:, None]
        latent, shared = self._norm("kv_norm", both[..., : m.kv_rank]), both[..., m.kv_rank :]
        return constrain(latent, "batch", None, "length", None), constrain(shared, "batch", None, "length", None)

    def _output(self, mixed: jax.Array) -> jax.Array:
        c, m = self.config, self.config.mla
        kernel = self._weight("o", (c.n_heads, m.v_dim, c.d_model), ("heads", "head_dim", "embed"), c.residual_std)
        joined = mixed.swapaxes(1, 2).reshape(mixed.shape[0], mixed.shape[2], c.n_heads * m.v_dim)
        return linear(joined, kernel.reshape(c.n_heads * m.v_dim, c.d_model), ("heads", "embed"), c.precision)


def check_supported(config: ModelConfig) -> None:
    """Raises ValueError for settings of other mixers that latent attention has no place for."""
    for name in ("sinks", "out_gate"):
        if getattr(config, name):
            raise ValueError(f"mixer 'mla' has no {name}: set it False, or choose gqa")
    for name in ("qkv_bias", "qk_bias", "out_bias", "qk_norm"):
        if getattr(config, name):
            raise ValueError(
                f"mixer 'mla' has no {name}: its latents are normalised and nothing has a bias; set it False"
            )
    for name, value in (("query_scalar", config.query_scalar), ("rope.local_theta", config.rope.local_theta)):
        if value is not None:
            raise ValueError(f"mixer 'mla' has no {name}: its scale follows from its widths and its rope; set it None")


def mla_state(config: ModelConfig, batch: int, length: int, dtype: Any) -> dict[str, jax.Array]:
    """Empty latents [B, 1, L, R] and shared keys [B, 1, L, rope] of one layer: R + rope numbers per token."""
    widths = {"latent": config.mla.kv_rank, "rope": config.mla.rope_dim}
    names = ("batch", None, "cache_length", None)
    return {name: constrain(jnp.zeros((batch, 1, length, width), dtype), *names) for name, width in widths.items()}


def mla_rotary(config: ModelConfig) -> int:
    """How many dimensions of each head are rotated."""
    return config.mla.rope_dim
