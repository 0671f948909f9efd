"""Policy-optimisation objectives: GRPO and its kin as argument values of one function.

| paper                    | arguments of `policy_loss`                                                 |
|--------------------------|----------------------------------------------------------------------------|
| GRPO (2402.03300)        | clip .2/.2, aggregate="sequence_mean", beta=.04                            |
| DAPO (2503.14476)        | clip .2/.28, aggregate="token_mean" (BNPO: the same with clip .2/.2)       |
| Dr. GRPO (2503.20783)    | clip .2/.2, aggregate="constant", max_length=the generation limit          |
| GSPO (2507.18071)        | clip 3e-4/4e-4, level="sequence", aggregate="sequence_mean"                |
| CISPO (2506.13585)       | surrogate="cispo", clip 1/.28, aggregate="token_mean"                      |
| SAPO (2511.20347)        | surrogate="sapo", aggregate="sequence_mean"                                |
| RLOO, REINFORCE          | clip 1/inf, aggregate="token_mean"; the baseline belongs to `rl.advantages` |
| dual clip (1912.09729)   | dual_clip=3                                                                |
| INTELLECT-2 (2505.07291) | delta=4                                                                    |
| truncated importance     | weights=importance_weights(old_logps, sampler_logps, mask, cap=2)          |
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from rl.kl import MAX_LOG_RATIO, check, kl

Metrics = dict[str, jax.Array | tuple[jax.Array, jax.Array]]
Loss = tuple[jax.Array, jax.Array, Metrics]

LEVELS = ("token", "sequence")
AGGREGATES = ("token_mean", "sequence_mean", "constant")
SURROGATES = ("clip", "cispo", "sapo")
EMPTY_ROWS = ("skip", "count")
SAPO_TEMPERATURES = (1.0, 1.05)  # for positive advantages, and for the rest (2511.20347, section 3)


def policy_loss(
    logps: jax.Array,
    old_logps: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: str = "token",
    aggregate: str = "sequence_mean",
    surrogate: str = "clip",
    max_length: int | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    weights: jax.Array | None = None,
    ref_logps: jax.Array | None = None,
    beta: float = 0.0,
    kl_kind: str = "k3",
    entropies: jax.Array | None = None,
    entropy_coef: float = 0.0,
    empty_rows: str = "skip",
) -> Loss:
    """The policy-gradient loss of N completions as (total, count, metrics); total / count is to be minimised.

    Shapes: logps, old_logps, mask, ref_logps, entropies [N, T], one completion per row; advantages and
    weights [N, T] or [N]. Only logps and entropies are differentiated. What stands where mask is 0, even NaN,
    changes nothing. level: ratio per "token", or its geometric mean over the "sequence". aggregate: the mean
    over tokens, the mean over rows of the mean over tokens, or the sum over rows x `max_length` ("constant");
    rows without a token are left out of the count (empty_rows="skip") or kept in it ("count"). Totals and
    counts of micro-batches add up exactly. dual_clip bounds the loss by -dual_clip x A where A < 0; delta
    caps the unclipped ratio. Per token beta x KL is added and entropy_coef x entropy subtracted. Metrics:
    pairs (sum, count) and ratio_deviation/max = max |ratio - 1|. Raises ValueError for an unknown name or a
    missing argument. Sources: the table at the head of this file.
    """
    check_names(level, aggregate, surrogate, empty_rows)
    valid, weight = mask > 0, mask.astype(logps.dtype)
    logps, advantages = masked(logps, valid), masked(per_token(advantages, mask), valid)
    ratio = importance_ratio(logps - stop_gradient(masked(old_logps, valid)), weight, level)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    losses = token_losses(surrogate, logps, ratio, clipped, advantages, dual_clip, delta)
    if weights is not None:
        losses = losses * stop_gradient(masked(per_token(weights, mask), valid))
    count = denominator(weight, aggregate, max_length, empty_rows)
    metrics = ratio_metrics(ratio, advantages, weight, clip_low, clip_high)
    metrics["policy_loss"] = (reduce_rows(losses, weight, aggregate), count)
    kl_loss, kl_metrics = kl_term(logps, ref_logps, weight, beta, kl_kind)
    entropy_loss, entropy_metrics = entropy_term(entropies, weight, entropy_coef)
    total = reduce_rows(losses + kl_loss + entropy_loss, weight, aggregate)
    return total, count, stop_gradient(metrics | kl_metrics | entropy_metrics)


def importance_ratio(log_ratio: jax.Array, weight: jax.Array, level: str) -> jax.Array:
    """exp of the log-ratios [N, T], or of their row means [N, 1] (GSPO, equation 7), clipped to +-20."""
    if level == "sequence":
        log_ratio = row_mean(log_ratio, weight)[:, None]
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def token_losses(
    surrogate: str,
    logps: jax.Array,
    ratio: jax.Array,
    clipped: jax.Array,
    advantages: jax.Array,
    dual_clip: float | None,
    delta: float | None,
) -> jax.Array:
    """The surrogate's loss of every token [N, T], before any mask."""
    if surrogate == "cispo":
        return -stop_gradient(clipped) * advantages * logps
    if surrogate == "sapo":
        return sapo_losses(ratio, advantages)
    return clipped_losses(ratio, clipped, advantages, dual_clip, delta)


def clipped_losses(
    ratio: jax.Array, clipped: jax.Array, advantages: jax.Array, dual_clip: float | None, delta: float | None
) -> jax.Array:
    """-min(r A, clipped A); the unclipped ratio is at most delta, and the loss -dual_clip A where A < 0."""
    capped = ratio if delta is None else jnp.minimum(ratio, delta)
    losses = -jnp.minimum(capped * advantages, clipped * advantages)
    if dual_clip is None:
        return losses
    return jnp.where(advantages < 0, jnp.minimum(losses, -dual_clip * advantages), losses)


def sapo_losses(ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """-A sigmoid(tau (r - 1)) 4 / tau: a soft gate in the place of the clip (SAPO, equation 5)."""
    tau = jnp.where(advantages > 0, *SAPO_TEMPERATURES)
    return -advantages * jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau


def kl_term(
    logps: jax.Array, ref_logps: jax.Array | None, weight: jax.Array, beta: float, kind: str
) -> tuple[jax.Array | float, Metrics]:
    """(beta x KL per token [N, T], the metric) of masked logps; ValueError when beta lacks a reference."""
    if ref_logps is None:
        if beta:
            raise ValueError(f"beta = {beta} needs ref_logps, the reference's log-probabilities [N, T]; found None")
        return 0.0, {}
    divergence = kl(logps, masked(ref_logps, weight > 0), kind)
    return (beta * divergence if beta else 0.0), {"kl": ((divergence * weight).sum(), weight.sum())}


def entropy_term(
    entropies: jax.Array | None, weight: jax.Array, coefficient: float
) -> tuple[jax.Array | float, Metrics]:
    """(-coefficient x entropy per token [N, T], the metric); ValueError when it lacks entropies."""
    if entropies is None:
        if coefficient:
            raise ValueError(f"entropy_coef = {coefficient} needs entropies [N, T]; found None")
        return 0.0, {}
    entropies = masked(entropies, weight > 0)
    return (-coefficient * entropies if coefficient else 0.0), {"entropy": ((entropies * weight).sum(), weight.sum())}


def ratio_metrics(
    ratio: jax.Array, advantages: jax.Array, weight: jax.Array, clip_low: float, clip_high: float
) -> Metrics:
    """Shares of tokens that the clip holds back below, above and in all, and the largest |ratio - 1|."""
    low = jnp.where((ratio < 1 - clip_low) & (advantages < 0), weight, 0).sum()
    high = jnp.where((ratio > 1 + clip_high) & (advantages > 0), weight, 0).sum()
    tokens = weight.sum()
    return {
        "clip_ratio/low_mean": (low, tokens),
        "clip_ratio/high_mean": (high, tokens),
        "clip_ratio/region_mean": (low + high, tokens),
        "ratio_deviation/max": jnp.max(jnp.where(weight > 0, jnp.abs(ratio - 1), 0), initial=0.0),
    }


def reduce_rows(values: jax.Array, weight: jax.Array, aggregate: str) -> jax.Array:
    """The numerator of an aggregate: a sum over tokens, or over rows of the mean over their tokens."""
    return row_mean(values, weight).sum() if aggregate == "sequence_mean" else (values * weight).sum()


def denominator(weight: jax.Array, aggregate: str, max_length: int | None, empty_rows: str) -> jax.Array:
    """The count that belongs to `reduce_rows`: tokens, rows, or rows x max_length."""
    if aggregate == "token_mean":
        return weight.sum()
    nonempty = (weight.sum(axis=1) > 0).astype(weight.dtype).sum()
    rows = nonempty if empty_rows == "skip" else jnp.asarray(weight.shape[0], weight.dtype)
    if aggregate == "sequence_mean":
        return rows
    if max_length is None:
        raise ValueError('aggregate="constant" divides by rows x max_length (Dr. GRPO): pass max_length')
    return rows * max_length


def importance_weights(
    old_logps: jax.Array,
    sampler_logps: jax.Array,
    mask: jax.Array,
    *,
    level: str = "token",
    cap: float | None = 2.0,
    keep: tuple[float, float] | None = None,
) -> jax.Array:
    """Constant weights [N, T] that make up for a sampler whose probabilities differ from the trainer's.

    exp(old - sampler) per "token", or of its sum over the "sequence"; at most `cap`, and 0 outside the
    interval `keep` if one is given; 0 where mask is 0. Source: Yao et al., "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training" (2025) for the cap; IcePop (2510.18855) for the interval.
    """
    check(level=(level, LEVELS))
    valid = mask > 0
    log_ratio = masked(old_logps, valid) - masked(sampler_logps, valid)
    if level == "sequence":
        log_ratio = log_ratio.sum(axis=1, keepdims=True)
    weights = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if keep is not None:
        weights = jnp.where((weights >= keep[0]) & (weights <= keep[1]), weights, 0)
    weights = weights if cap is None else jnp.minimum(weights, cap)
    return stop_gradient(weights * valid.astype(weights.dtype))


def row_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over each row's tokens, [N, T] -> [N]; 0 for a row without tokens."""
    return (values * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)


def masked(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The values where valid, 0 elsewhere: chosen, not multiplied, so that a NaN in the padding is lost."""
    return jnp.where(valid, values, 0)


def per_token(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Values per row [N] or per token [N, T] as [N, T], without a gradient; ValueError otherwise."""
    if values.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(f"expected shape {mask.shape[:1]} or {mask.shape}, found {values.shape}")
    return stop_gradient(jnp.broadcast_to(values if values.ndim == 2 else values[:, None], mask.shape))


def check_names(level: str, aggregate: str, surrogate: str, empty_rows: str) -> None:
    """Raise ValueError, naming what is near, for a word that `policy_loss` does not know."""
    check(level=(level, LEVELS), aggregate=(aggregate, AGGREGATES))
    check(surrogate=(surrogate, SURROGATES), empty_rows=(empty_rows, EMPTY_ROWS))
