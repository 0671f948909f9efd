"""Policy-optimisation objectives: GRPO and its kin as argument values of one function.

| paper                    | arguments of `policy_loss`                                                 |
|--------------------------|----------------------------------------------------------------------------|
| GRPO (2402.03300)        | clip .2/.2, aggregate="sequence_mean", beta=.04                            |
| DeepSeek-R1 (2501.12948) | clip 10/10, aggregate="sequence_mean", beta=.001                           |
| DAPO (2503.14476)        | clip .2/.28, aggregate="token_mean" (BNPO: the same with clip .2/.2)       |
| Dr. GRPO (2503.20783)    | clip .2/.2, aggregate="constant", max_length=the generation limit          |
| GSPO (2507.18071)        | clip 3e-4/4e-4, level="sequence", aggregate="sequence_mean"                |
| LUSPO                    | clip 2e-3/2.5e-3, level="sequence", aggregate="sequence_sum"               |
| GMPO (2507.20673)        | surrogate="gmpo", clip .4/.4 (of the log-ratio), aggregate="sequence_mean" |
| CISPO (2506.13585)       | surrogate="cispo", clip 1/.28 or ratio_cap=1.28, aggregate="token_mean"    |
| SAPO (2511.20347)        | surrogate="sapo", aggregate="sequence_mean"                                |
| RLOO, REINFORCE(++)      | clip 1/inf, aggregate="token_mean"; advantages: `rl.advantages`, `returns` |
| dual clip (1912.09729)   | dual_clip=3                                                                |
| INTELLECT-2 (2505.07291) | delta=4                                                                    |
| DeepSeek-V3.2            | unbiased_kl=True, off_policy_threshold                                     |
| truncated importance     | weights=importance_weights(old_logps, sampler_logps, mask, cap=2)          |
| top-entropy tokens       | weights=top_entropy_mask(entropies, mask, share=.2)                        |
| entropy alone            | policy_coef=0, entropy_coef                                                |

docs/objectives.md holds the papers' other numbers and says where the reference implementations differ.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped

from rl.kl import MAX_LOG_RATIO, check, kl
from rl.masks import masked, off_policy_mask, per_token, row_mean
from settings.rl import LEVELS, ImportanceConfig, PolicyLossConfig
from settings.setting import from_mapping
from train.objectives.metrics import Maximum, Minimum

Metrics = dict[str, Maximum | Minimum | tuple[jax.Array, jax.Array]]
Loss = tuple[jax.Array, jax.Array, Metrics]

SAPO_TEMPERATURES = (1.0, 1.05)  # for positive advantages, and for the rest (2511.20347, section 3)


class Clip(NamedTuple):
    """How far a ratio may go: within [low, high], unclipped to delta, and the loss to -dual x A where A < 0."""

    low: float
    high: float
    dual: float | None = None
    delta: float | None = None


def policy_loss(
    logps: Float[Array, "N T"],
    old_logps: Float[Array, "N T"],
    advantages: Float[Array, "N T"] | Float[Array, " N"],
    mask: Shaped[Array, "N T"],
    *,
    clip_low: float = PolicyLossConfig.clip_low,
    clip_high: float = PolicyLossConfig.clip_high,
    ratio_cap: float | None = PolicyLossConfig.ratio_cap,
    level: str = PolicyLossConfig.level,
    aggregate: str = PolicyLossConfig.aggregate,
    surrogate: str = PolicyLossConfig.surrogate,
    max_length: int | None = None,
    dual_clip: float | None = PolicyLossConfig.dual_clip,
    delta: float | None = PolicyLossConfig.delta,
    weights: jax.Array | None = None,
    off_policy_threshold: float | None = PolicyLossConfig.off_policy_threshold,
    ref_logps: jax.Array | None = None,
    beta: float = PolicyLossConfig.beta,
    kl_kind: str = PolicyLossConfig.kl_kind,
    unbiased_kl: bool = PolicyLossConfig.unbiased_kl,
    entropies: jax.Array | None = None,
    entropy_coef: float | jax.Array = PolicyLossConfig.entropy_coef,
    policy_coef: float = PolicyLossConfig.policy_coef,
    empty_rows: str = PolicyLossConfig.empty_rows,
) -> Loss:
    """The policy-gradient loss of N completions as (total, count, metrics); total / count is to be minimised.

    Shapes: logps, old_logps, mask, ref_logps, entropies [N, T], one completion per row; advantages and weights
    [N, T] or [N]; entropy_coef a number or [N]. Only logps and entropies are differentiated. What stands where
    mask is 0, even NaN, changes nothing. Totals and counts of micro-batches add up exactly. The ratio, per token
    or its geometric mean over the row (`level`), is kept within [1 - clip_low, 1 + clip_high]; ratio_cap, an
    absolute number, stands in for 1 + clip_high. `weights` and the off-policy mask (`rl.masks`) multiply the
    surrogate, not the count. The total is policy_coef x the surrogate, plus per token beta x KL (unbiased_kl: beta x
    ratio x KL), minus entropy_coef x entropy; metrics are without these weights. For `aggregate` and `empty_rows`
    see `denominator`, for dual_clip and delta `clipped_losses`. Metrics: pairs (sum, count) and
    ratio_deviation/max = max |ratio - 1|. Raises ValueError for an unknown name, bounds out of order, a negative
    policy_coef or a missing argument. Sources: the table at the head of this file.
    """
    config = from_mapping(PolicyLossConfig, locals(), entropy_coef=0.0)  # validated; a moved coefficient is an array
    clip = Clip(*config.bounds, dual_clip, delta)
    valid, weight = mask > 0, mask.astype(logps.dtype)
    logps, old_logps = masked(logps, valid), stop_gradient(masked(old_logps, valid))
    advantages = masked(per_token(advantages, mask), valid)
    ratio = importance_ratio(logps - old_logps, weight, level)
    losses = token_losses(surrogate, logps, old_logps, ratio, advantages, weight, clip)
    if weights is not None:
        losses = losses * stop_gradient(masked(per_token(weights, mask), valid))
    if off_policy_threshold is not None:
        losses = losses * off_policy_mask(logps, old_logps, advantages, mask, off_policy_threshold)
    count = denominator(weight, aggregate, max_length, empty_rows)
    metrics = ratio_metrics(ratio, advantages, weight, clip)
    metrics["policy_loss"] = (reduce_rows(losses, weight, aggregate), count)
    kl_loss, kl_metrics = kl_term(logps, ref_logps, weight, beta, kl_kind, ratio if unbiased_kl else 1.0)
    entropy_loss, entropy_metrics = entropy_term(entropies, weight, entropy_coef)
    total = reduce_rows(policy_coef * losses + kl_loss + entropy_loss, weight, aggregate)
    return total, count, stop_gradient(metrics | kl_metrics | entropy_metrics)


def importance_ratio(log_ratio: jax.Array, weight: jax.Array, level: str) -> jax.Array:
    """exp of the log-ratios [N, T], or of their row means [N, 1] (GSPO, equation 7), clipped to +-20."""
    if level == "sequence":
        log_ratio = row_mean(log_ratio, weight)[:, None]
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def token_losses(
    surrogate: str,
    logps: jax.Array,
    old_logps: jax.Array,
    ratio: jax.Array,
    advantages: jax.Array,
    weight: jax.Array,
    clip: Clip,
) -> jax.Array:
    """The surrogate's loss of every token [N, T], before any mask."""
    if surrogate == "cispo":
        return -stop_gradient(jnp.clip(ratio, clip.low, clip.high)) * advantages * logps
    if surrogate == "sapo":
        return sapo_losses(ratio, advantages)
    if surrogate == "gmpo":
        return gmpo_losses(logps - old_logps, advantages, weight, clip)
    return clipped_losses(ratio, advantages, clip)


def clipped_losses(ratio: jax.Array, advantages: jax.Array, clip: Clip) -> jax.Array:
    """-min(r A, clipped r x A); the unclipped ratio is at most delta, and the loss -dual x A where A < 0."""
    capped = ratio if clip.delta is None else jnp.minimum(ratio, clip.delta)
    losses = -jnp.minimum(capped * advantages, jnp.clip(ratio, clip.low, clip.high) * advantages)
    if clip.dual is None:
        return losses
    return jnp.where(advantages < 0, jnp.minimum(losses, -clip.dual * advantages), losses)


def gmpo_losses(log_ratio: jax.Array, advantages: jax.Array, weight: jax.Array, clip: Clip) -> jax.Array:
    """-A x the row's geometric mean of the token ratios, each clipped towards the worse (GMPO, 2507.20673)."""
    sign = jnp.sign(advantages)
    clipped = jnp.clip(log_ratio, math.log(clip.low), math.log(clip.high))
    worse = sign * jnp.minimum(sign * log_ratio, sign * clipped)
    return -advantages * importance_ratio(worse, weight, "sequence")


def sapo_losses(ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """-A sigmoid(tau (r - 1)) 4 / tau: a soft gate in the place of the clip (SAPO, equation 5)."""
    tau = jnp.where(advantages > 0, *SAPO_TEMPERATURES)
    return -advantages * jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau


def kl_term(
    logps: jax.Array,
    ref_logps: jax.Array | None,
    weight: jax.Array,
    beta: float,
    kind: str,
    ratio: jax.Array | float = 1.0,
) -> tuple[jax.Array | float, Metrics]:
    """(beta x ratio x KL per token [N, T], the metric) of masked logps; ValueError when beta lacks a reference.

    Times the ratio, through which the gradient flows too, the estimate is that of the current policy's KL though
    another one sampled (DeepSeek-V3.2, 2512.02556); the metric is the plain KL.
    """
    if ref_logps is None:
        if beta:
            raise ValueError(f"beta = {beta} needs ref_logps, the reference's log-probabilities [N, T]; found None")
        return 0.0, {}
    divergence = kl(logps, masked(ref_logps, weight > 0), kind)
    metric: Metrics = {"kl": ((divergence * weight).sum(), weight.sum())}
    return (beta * ratio * divergence if beta else 0.0), metric


def entropy_term(
    entropies: jax.Array | None, weight: jax.Array, coefficient: float | jax.Array
) -> tuple[jax.Array | float, Metrics]:
    """(-coefficient x entropy per token [N, T], the metric); ValueError when it lacks entropies.

    An array, a scalar or one number per row [N] that a batch can carry, is a coefficient that a rule moves.
    """
    unused = isinstance(coefficient, int | float) and not coefficient
    if entropies is None:
        if not unused:
            raise ValueError(f"entropy_coef = {coefficient} needs entropies [N, T]; found None")
        return 0.0, {}
    entropies = masked(entropies, weight > 0)
    metric: Metrics = {"entropy": ((entropies * weight).sum(), weight.sum())}
    if unused:
        return 0.0, metric
    coefficient = stop_gradient(jnp.asarray(coefficient, entropies.dtype))
    return -(coefficient[:, None] if coefficient.ndim == 1 else coefficient) * entropies, metric


def ratio_metrics(ratio: jax.Array, advantages: jax.Array, weight: jax.Array, clip: Clip) -> Metrics:
    """Shares of tokens that the clip holds back below, above and in all, and the largest |ratio - 1|."""
    low = jnp.where((ratio < clip.low) & (advantages < 0), weight, 0).sum()
    high = jnp.where((ratio > clip.high) & (advantages > 0), weight, 0).sum()
    tokens = weight.sum()
    return {
        "clip_ratio/low_mean": (low, tokens),
        "clip_ratio/high_mean": (high, tokens),
        "clip_ratio/region_mean": (low + high, tokens),
        "ratio_deviation/max": Maximum(jnp.max(jnp.where(weight > 0, jnp.abs(ratio - 1), 0), initial=0.0)),
    }


def sampler_metrics(logps: jax.Array, sampler_logps: jax.Array, mask: jax.Array) -> Metrics:
    """How far the trainer's log-probs of the sampled tokens [N, T] lie from the sampler's, under TRL's names.

    To mean what it says, `logps` are those of the parameters that sampled: before the first update of a rollout.
    """
    valid = mask > 0
    gap = stop_gradient(masked(logps, valid) - masked(sampler_logps, valid))
    ratio = jnp.exp(jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    tokens = valid.astype(gap.dtype).sum()
    return {
        "sampling/sampling_logp_difference/mean": (jnp.abs(gap).sum(), tokens),
        "sampling/sampling_logp_difference/max": Maximum(jnp.max(jnp.abs(gap), initial=0.0)),
        "sampling/importance_sampling_ratio/mean": (masked(ratio, valid).sum(), tokens),
        "sampling/importance_sampling_ratio/max": Maximum(jnp.max(masked(ratio, valid), initial=0.0)),
        "sampling/importance_sampling_ratio/min": Minimum(jnp.min(jnp.where(valid, ratio, jnp.inf), initial=jnp.inf)),
    }


def reduce_rows(values: jax.Array, weight: jax.Array, aggregate: str) -> jax.Array:
    """The numerator of an aggregate: a sum over tokens, or over rows of the mean over their tokens."""
    return row_mean(values, weight).sum() if aggregate == "sequence_mean" else (values * weight).sum()


def denominator(weight: jax.Array, aggregate: str, max_length: int | None, empty_rows: str) -> jax.Array:
    """The count that belongs to `reduce_rows`, of the rows or tokens where `weight` [N, T] is 1.

    "token_mean": tokens. "sequence_mean" (of means over tokens) and "sequence_sum" (of sums): rows. "constant":
    rows x max_length. Rows without a token are left out (empty_rows="skip", as verl does) or kept ("count", as TRL
    does). For Dr. GRPO's max_length TRL and oat take the generation limit, verl and Tunix by default the length of
    the batch at hand, which gives short batches longer steps.
    """
    if aggregate == "token_mean":
        return weight.sum()
    nonempty = (weight.sum(axis=1) > 0).astype(weight.dtype).sum()
    rows = nonempty if empty_rows == "skip" else jnp.asarray(weight.shape[0], weight.dtype)
    if aggregate in ("sequence_mean", "sequence_sum"):
        return rows
    if max_length is None:
        raise ValueError('aggregate="constant" divides by rows x max_length (Dr. GRPO): pass max_length')
    return rows * max_length


def importance_weights(
    old_logps: jax.Array,
    sampler_logps: jax.Array,
    mask: jax.Array,
    *,
    level: str = ImportanceConfig.importance_level,
    cap: float | None = 2.0,
    keep: tuple[float, float] | None = None,
) -> jax.Array:
    """Constant weights [N, T] that make up for a sampler whose probabilities differ from the trainer's.

    exp(old - sampler) per "token", or of its sum over the "sequence"; at most `cap`, and 0 outside the interval
    `keep` if one is given; 0 where mask is 0. cap=2 is verl's and Tunix's, keep=(.5, 5) IcePop's; TRL's default,
    its sequence mask, is level="sequence", cap=None, keep=(0, 3): a row beyond the bound is dropped as a whole.
    Raises ValueError for an unknown level, a cap that is not positive or an interval out of order. Sources: Yao et
    al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025) for the cap; IcePop
    (2510.18855) for the interval.
    """
    if cap is not None and not cap > 0:
        raise ValueError(f"cap = {cap} must be positive, or None for no cap")
    if keep is not None and not 0 <= keep[0] < keep[1]:
        raise ValueError(f"keep = {keep} must be an interval (low, high) with 0 <= low < high")
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
