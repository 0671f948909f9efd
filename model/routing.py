"""Which experts a token goes to, and what keeps them evenly loaded: pure functions of arrays, all in fp32."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from settings.model_parts import MoEConfig

TINY = 1e-20  # what the published code adds to the sum of the chosen scores


class Routes(NamedTuple):
    """Where rows go: `experts` [N, k] int32, n_experts meaning nowhere, and `gates` [N, k] fp32, 0 there."""

    experts: jax.Array
    gates: jax.Array


def router_logits(x: Float[Array, "*N D"], router: Float[Array, "D E"]) -> Float[Array, "*N E"]:
    """x [..., D] and router [D, E] of any dtype -> logits [..., E], computed in fp32 on every platform."""
    x, router = x.astype(jnp.float32), router.astype(jnp.float32)
    return jnp.matmul(x, router, precision=jax.lax.Precision.HIGHEST)


def router_scores(logits: Float[Array, "*N E"], score: str) -> Float[Array, "*N E"]:
    """logits [..., E] -> affinities [..., E]: "softmax" over the experts, or "sigmoid" of each (DeepSeek-V3)."""
    return jax.nn.sigmoid(logits) if score == "sigmoid" else jax.nn.softmax(logits, -1)


def choose_tokens(
    scores: Float[Array, "*N E"],
    bias: Float[Array, " E"] | None,
    valid: Shaped[Array, "*N"],
    config: MoEConfig,
    replayed: jax.Array | None = None,
) -> Routes:
    """Every token takes its top k experts: scores [..., E], bias [E], valid [...] bool -> Routes [..., k].

    The bias counts for selection alone; the gates are the unbiased scores of the chosen, over their sum if
    `normalize`, times `scale`. `replayed` [..., k] are experts to take instead: a choice made before, replayed with
    today's gates (2507.18071, section 5.3, of reinforcement learning). Source: 2412.19437, section 2.1.2.
    """
    if replayed is None:
        choice = jax.lax.stop_gradient(scores) if bias is None else jax.lax.stop_gradient(scores + bias)
        replayed = jax.lax.top_k(limit_groups(choice, config), config.top_k)[1]
    experts = jnp.clip(replayed.astype(jnp.int32), 0, config.n_experts - 1)
    gates = jnp.take_along_axis(scores, experts, -1)
    if config.normalize:
        gates = gates / (gates.sum(-1, keepdims=True) + TINY)
    keep = valid[..., None]
    return Routes(jnp.where(keep, experts, config.n_experts), jnp.where(keep, gates * config.scale, 0.0))


def limit_groups(choice: jax.Array, config: MoEConfig) -> jax.Array:
    """choice [..., E], -inf outside each token's best groups, which go by the sum of their two best experts or one."""
    if config.top_groups == config.n_groups:
        return choice
    grouped = choice.reshape(*choice.shape[:-1], config.n_groups, -1)
    counted = 1 if config.group_score == "max" else min(2, grouped.shape[-1])
    best = jax.lax.top_k(jax.lax.top_k(grouped, counted)[0].sum(-1), config.top_groups)[1]
    kept = chosen(best, config.n_groups)[..., None]
    # Not 0: biased scores may be negative, and 0 would then beat every expert of the kept groups.
    return jnp.where(kept > 0, grouped, -jnp.inf).reshape(choice.shape)


def choose_experts(scores: jax.Array, valid: jax.Array, config: MoEConfig) -> tuple[jax.Array, Routes]:
    """Every expert takes its top T x top_k / E tokens: scores [T, E], valid [T] -> (tokens [N], Routes [N, 1]).

    One row per pair of expert and token, an equal mix of experts in any stretch of rows. Whether a token is taken
    depends on the whole batch, also on what follows it: fit for training and scoring, not for generation. A token may
    get no expert at all. Padding is never taken and counts in no T. Source: 2202.09368, section 3.2.
    """
    n, share = scores.shape[0], config.top_k / config.n_experts
    rows = min(n, -(-n * config.top_k // config.n_experts))
    masked = jnp.where(valid[:, None], jax.lax.stop_gradient(scores), -jnp.inf)
    tokens = jax.lax.top_k(masked.T, rows)[1].T
    allowed = jnp.arange(rows) < jnp.ceil(valid.sum() * share)
    experts = jnp.broadcast_to(jnp.arange(config.n_experts), tokens.shape)
    gates = jnp.where(allowed[:, None], scores[tokens, experts], 0.0)
    experts = jnp.where(allowed[:, None], experts, config.n_experts)
    if config.normalize:
        total = jnp.zeros(n).at[tokens].add(gates)
        gates = gates / (total[tokens] + TINY)
    return tokens.reshape(-1), Routes(experts.reshape(-1, 1), gates.reshape(-1, 1) * config.scale)


def chosen(indices: jax.Array, size: int) -> jax.Array:
    """indices [..., k], distinct or out of range -> [..., size] fp32, 1 at those in range."""
    return (indices[..., None] == jnp.arange(size)).any(-2).astype(jnp.float32)


def shares(scores: jax.Array, score: str) -> jax.Array:
    """Scores [..., E] as a distribution over the experts: s / sum(s), which softmax scores already are."""
    return scores if score == "softmax" else scores / (scores.sum(-1, keepdims=True) + TINY)


def balance_loss(shares: jax.Array, picked: jax.Array, valid: jax.Array, top_k: int, per: str) -> jax.Array:
    """sum_i f_i P_i, which is 1 when everything is even: shares and picked [B, S, E], valid [B, S] -> scalar.

    f_i = E / (k T) x the number of tokens sent to i, P_i = the mean share of i. `per` "sequence": T and the means are
    those of a row (a packed sequence), averaged over the rows that hold tokens; else those of the whole batch.
    f counts what the router really selected, bias and groups included; 2412.19437 (equation 18) counts the top k of
    the unbiased scores. Gradients flow through P alone. Mixtral's and Qwen's loss is top_k times this one per batch.
    """
    axes = (1,) if per == "sequence" else (0, 1)
    tokens = valid.sum(axes).astype(jnp.float32)[..., None]
    mean = jnp.where(valid[..., None], shares, 0.0).sum(axes) / jnp.maximum(tokens, 1.0)
    load = jax.lax.stop_gradient(picked.sum(axes)) / jnp.maximum(tokens, 1.0)
    loss = shares.shape[-1] / top_k * (load * mean).sum(-1)
    return loss.sum() / jnp.maximum((tokens > 0).sum(), 1)


def z_loss(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean over tokens of logsumexp(logits)^2: logits [..., E], valid [...] -> scalar (2202.08906, section 4)."""
    squares = jnp.square(jax.nn.logsumexp(logits, -1))
    return jnp.where(valid, squares, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def entropy(shares: jax.Array) -> jax.Array:
    """The entropy in nats of distributions [..., E] -> [...]."""
    return -(shares * jnp.log(jnp.maximum(shares, TINY))).sum(-1)


def move_bias(bias: jax.Array, load: jax.Array, rate: float) -> jax.Array:
    """bias + rate x sign(mean(load) - load), both [E]: overloaded experts become less attractive.

    `load` counts the tokens of the whole global batch. Source: 2408.15664, algorithm 1.
    """
    return bias + rate * jnp.sign(load.mean() - load)


def max_violation(load: jax.Array) -> jax.Array:
    """max_i load_i / mean(load) - 1, of loads [..., E] -> [...] (2408.15664, equation 4)."""
    return load.max(-1) / jnp.maximum(load.mean(-1), TINY) - 1.0
