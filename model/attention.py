"""Grouped-query attention (2305.13245) with every switch of the published dense decoders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from model.blocked_attention import Columns, Sight, blocked_attention, sees
from model.cache import write_columns
from model.config import ModelConfig
from model.context import Context
from model.hooks import MOST_WEIGHTS, asks, hook_point, replaces
from model.initial import weights
from model.linear import linear
from model.norms import norm_of
from model.platform import attention_implementation
from model.rope import apply_rope, rotation
from model.sharding import constrain, size_of


def attention_mask(context: Context, window: int | None) -> jax.Array:
    """Who sees whom, [B, S, L] bool."""
    return sees(*sight(context), window)


def sight(context: Context) -> Sight:
    """The columns of the queries and of the keys."""
    queries = Columns(context.positions, context.segments)
    return Sight(queries, Columns(context.key_positions, context.key_segments))


def attend(
    q: Float[Array, "B H S D"],
    k: Float[Array, "B K L D"],
    v: Float[Array, "B K L V"],
    context: Context,
    window: int | None,
    scale: float,
    kind: str = "auto",
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B H S V"]:
    """Softmax attention: q [B, H, S, D], k [B, K, L, D], v [B, K, L, V] -> [B, H, S, V]; fp32 softmax.

    `kind`: "einsum" (all scores at once), "blocked" (never more than a block of them: model/blocked_attention.py),
    "fused" (`jax.nn.dot_product_attention`), or "auto" (model/platform.py). `sinks` [H] are logits of the softmax that
    stand for no value: what they take of the weights is dropped (2508.10925).
    """
    kind = attention_implementation(kind, q.shape[2], k.shape[2], q.shape[2] > 1 and size_of("length") > 1)
    if kind == "blocked":
        return blocked_attention(q, k, v, sight(context), window, scale, sinks=sinks)
    mask = attention_mask(context, window)
    # The fused kernel takes no values of another width than the keys', and no sinks.
    if kind == "fused" and k.shape[-1] == v.shape[-1] and sinks is None:
        return _fused(q, k, v, mask, scale)
    return einsum(q, k, v, mask, scale, sinks)


def einsum(
    q: Float[Array, "B H S D"],
    k: Float[Array, "B K L D"],
    v: Float[Array, "B K L V"],
    mask: Bool[Array, "B S L"],
    scale: float,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B H S V"]:
    """`attend` where mask [B, S, L] is set; query heads that share a key head are rows of one matrix product."""
    return mix(_scores(q, k, scale), v, mask, sinks).astype(q.dtype)


def _scores(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    """Scaled products of queries and keys, [B, H, S, L] fp32."""
    B, H, S, D = q.shape
    K = k.shape[1]
    # Scaled in fp32: a scale rounded to bf16 first would bend every score by up to 0.2 %.
    grouped = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(B, K, (H // K) * S, D)
    scores = jnp.einsum("bkmd,bkld->bkml", grouped, k, preferred_element_type=jnp.float32)
    return scores.reshape(B, H, S, -1)


def attention_weights(
    q: Float[Array, "B H S D"],
    k: Float[Array, "B K L D"],
    context: Context,
    window: int | None,
    scale: float,
    kind: str = "auto",
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B H S L"]:
    """The softmax weights that `attend` mixes values with, fp32, for looking at; with sinks they sum to less than 1.

    Raises ValueError where `attend` would not hold them all ("blocked", "fused"), and for more than MOST_WEIGHTS.
    """
    (B, H, S, _), L = q.shape, k.shape[2]
    kind = attention_implementation(kind, S, L, S > 1 and size_of("length") > 1)
    if kind != "einsum":
        raise ValueError(
            f"attention.weights requires attention='einsum', found {kind!r} for {S} queries and {L} keys, which never"
            " holds them: build the model with config.replace(attention='einsum') for short rows"
        )
    if B * H * S * L > MOST_WEIGHTS:
        raise ValueError(
            f"attention.weights of {B} rows x {H} heads x {S} queries x {L} keys are more than {MOST_WEIGHTS}: give"
            " fewer or shorter rows"
        )
    scores = jnp.where(attention_mask(context, window)[:, None], _scores(q, k, scale), -1e30)
    if sinks is None:
        return jax.nn.softmax(scores)
    last = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (B, H, S, 1))
    return jax.nn.softmax(jnp.concatenate([scores, last], -1))[..., :-1]


def weigh(weights: Float[Array, "B H S L"], v: Float[Array, "B K L V"]) -> Float[Array, "B H S V"]:
    """Values mixed by given weights."""
    B, H, S, L = weights.shape
    grouped = weights.reshape(B, v.shape[1], -1, L).astype(v.dtype)
    mixed = jnp.einsum("bkml,bkld->bkmd", grouped, v, preferred_element_type=jnp.float32)
    return mixed.reshape(B, H, S, -1).astype(v.dtype)


def mix(
    scores: Float[Array, "B H S L"],
    v: Float[Array, "B K L V"],
    mask: Bool[Array, "B S L"],
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B H S V"]:
    """Means of v [B, K, L, V] weighed by the softmax of scores [B, H, S, L] where mask [B, S, L] is set; fp32.

    The sum of the weights is divided out after the product with v, which saves a pass over [S, L].
    """
    B, H, S, L = scores.shape
    K = v.shape[1]
    scores = jnp.where(mask[:, None], scores, -1e30)
    last = None if sinks is None else sinks.astype(jnp.float32)[:, None, None]
    top = scores.max(-1, keepdims=True) if last is None else jnp.maximum(scores.max(-1, keepdims=True), last)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True) if last is None else weights.sum(-1, keepdims=True) + jnp.exp(last - top)
    grouped = weights.reshape(B, K, (H // K) * S, L).astype(v.dtype)
    mixed = jnp.einsum("bkml,bkld->bkmd", grouped, v, preferred_element_type=jnp.float32)
    return mixed.reshape(B, H, S, -1) / total


def gate_output(mixed: Float[Array, "B H S V"], gate: Float[Array, "B H S V"]) -> Float[Array, "B H S V"]:
    """mixed x sigmoid(gate), in fp32 (2505.06708)."""
    return (mixed.astype(jnp.float32) * jax.nn.sigmoid(gate.astype(jnp.float32))).astype(mixed.dtype)


def _fused(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    swap = lambda x: x.swapaxes(1, 2)  # noqa: E731  (heads and time change places)
    return swap(jax.nn.dot_product_attention(swap(q), swap(k), swap(v), mask=mask[:, None], scale=scale))


class GQA(nn.Module):
    """Declares the projections of one attention layer and calls the functions above."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, window: int | None, state: Any) -> tuple[jax.Array, Any]:
        """x [B, S, D], keys seen back, state {k, v} [B, K, L, hd] or None -> (y [B, S, D], new state)."""
        c = self.config
        q = self._project(x, "q", c.n_heads, "heads")
        k = self._project(x, "k", c.n_kv_heads, "kv_heads")
        v = self._project(x, "v", c.n_kv_heads, "kv_heads")
        if c.qk_norm:
            q = norm_of(c, "rmsnorm", name="q_norm")(q)
            k = norm_of(c, "rmsnorm", name="k_norm")(k)
        if context.rope:
            table = context.rope[rotation(c.rope, gqa_rotary(c), window)]
            q, k = (apply_rope(part, *table, c.rope.interleaved) for part in (q, k))
        if context.index is not None:
            state = {name: write_columns(state[name], new, context.index) for name, new in (("k", k), ("v", v))}
            k, v = state["k"].astype(q.dtype), state["v"].astype(q.dtype)
        scale = (c.query_scalar or c.head_dim) ** -0.5
        sinks = self._weight("sinks", (c.n_heads,), ("heads",), c.init_std) if c.sinks else None
        mixed = attend(q, k, v, context, window, scale, c.attention, sinks)
        if asks(context.hooks, "attention.weights"):
            shares = attention_weights(q, k, context, window, scale, c.attention, sinks)
            shares = hook_point(self, "attention.weights", shares)
            mixed = weigh(shares, v) if replaces(context.hooks, "attention.weights") else mixed
        if c.out_gate:
            mixed = gate_output(mixed, self._project(x, "gate", c.n_heads, "heads"))
        return hook_point(self, "attention.out", self._output(mixed)), state

    def _weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> jax.Array:
        init = nn.with_logical_partitioning(weights(self.config, std), axes)
        return self.param(name, init, shape, jnp.dtype(self.config.param_dtype))

    def _bias(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
        return self.param(name, init, shape, jnp.dtype(self.config.param_dtype)).astype(self.config.dtype)

    def _project(self, x: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
        c = self.config
        kernel = self._weight(name, (c.d_model, heads, c.head_dim), ("embed", axis, "head_dim"), c.init_std)
        y = linear(x, kernel.reshape(c.d_model, heads * c.head_dim), ("embed", axis), c.precision)
        y = y.reshape(*x.shape[:2], heads, c.head_dim).swapaxes(1, 2)
        if c.qkv_bias or (c.qk_bias and name in "qk"):
            y = y + self._bias(f"{name}_bias", (heads, c.head_dim), (axis, "head_dim"))[:, None]
        return constrain(y, "batch", f"act_{axis}", "length", None)

    def _output(self, mixed: jax.Array) -> jax.Array:
        c = self.config
        kernel = self._weight("o", (c.n_heads, c.head_dim, c.d_model), ("heads", "head_dim", "embed"), c.residual_std)
        joined = mixed.swapaxes(1, 2).reshape(*mixed.shape[:1], mixed.shape[2], c.n_heads * c.head_dim)
        y = linear(joined, kernel.reshape(c.n_heads * c.head_dim, c.d_model), ("heads", "embed"), c.precision)
        return y + self._bias("o_bias", (c.d_model,), ("embed",)) if c.out_bias else y


def gqa_state(config: ModelConfig, batch: int, length: int, dtype: Any) -> dict[str, jax.Array]:
    """Empty keys and values of one layer, [B, K, L, hd] (heads before time: decode reads whole heads)."""
    shape = (batch, config.n_kv_heads, length, config.head_dim)
    # Two buffers, not one twice: both are donated.
    names = ("batch", "act_kv_heads", "cache_length", None)
    return {name: constrain(jnp.zeros(shape, dtype), *names) for name in ("k", "v")}


def gqa_rotary(config: ModelConfig) -> int:
    """How many dimensions of each head are rotated."""
    return int(config.head_dim * config.rope.partial)
