"""Advantages: how much better each completion was than what could be expected for its prompt."""

import jax
import jax.numpy as jnp

from rl.kl import check
from settings.rl import BASELINES, GROUPED, SCALES, SINGLETONS, AdvantageConfig

VARIANCE_EPSILON = 1e-8  # verl's; the setting rl.epsilon is added to a deviation


def advantages(
    rewards: jax.Array,
    *,
    baseline: str = AdvantageConfig.baseline,
    scale: str = AdvantageConfig.scale,
    ddof: int = AdvantageConfig.ddof,
    epsilon: float = AdvantageConfig.epsilon,
    singleton: str = AdvantageConfig.singleton,
) -> jax.Array:
    """Rewards [P, G] of P prompts x G completions, minus a baseline, over a scale -> [P, G].

    baseline: "group" (the prompt's mean), "leave_one_out" (the mean of the prompt's other completions),
    "batch" (the mean of all) or "none". scale: "group" or "batch" (standard deviation of the prompt's rewards
    or of all rewards, plus `epsilon`), "whiten" (what is left of the rewards is made zero-mean with unit
    variance over the batch), "mean" (the prompt's mean, for rewards that are never negative) or "none".

    Libraries differ. ddof: 1 (the variance over n - 1) in TRL, verl and Tunix, 0 in simply, nano-aha-moment and
    GRPO-Zero. epsilon: 1e-4 TRL, 1e-6 verl and Tunix, 1e-8 oat, 1e-9 OpenRLHF.

    A prompt with one completion has neither a group mean nor a group deviation. singleton="raw" or "" keeps its
    reward as it is (verl's choice: REINFORCE without a baseline); "zero" gives it the advantage 0, hence no signal
    (TRL's). A run must choose (settings/rl.py). Raises ValueError for an unknown name or a shape that is
    not [P, G].

    Source: GRPO, DeepSeekMath (2402.03300), section 4.1.2 (group, group); Dr. GRPO (2503.20783), section 3.2
    (group, none); RLOO (2402.14740), section 3 (leave_one_out, none); REINFORCE++ with baseline (2501.03262),
    (group, whiten); MaxRL (group, mean).
    """
    check(baseline=(baseline, BASELINES), scale=(scale, SCALES), singleton=(singleton, ("", *SINGLETONS)))
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [prompts, completions], got shape {rewards.shape}")
    lone = rewards.shape[1] == 1
    centred = rewards - baseline_of(rewards, baseline, lone)
    if lone and singleton == "zero" and {baseline, scale} & GROUPED:
        return jnp.zeros_like(rewards)
    if scale == "whiten":
        return whiten(centred, ddof=ddof)
    return centred / scale_of(rewards, scale, ddof, epsilon, lone)


def baseline_of(rewards: jax.Array, baseline: str, lone: bool) -> jax.Array | float:
    """What is subtracted from the rewards [P, G]; shape [P, G], [P, 1] or a scalar."""
    if baseline == "batch":
        return rewards.mean()
    if baseline == "none" or lone:
        return 0.0
    # Counted from the first: equal rewards, whatever they are, must leave exactly 0, which an epsilon cannot blow up.
    mean = rewards[:, :1] + (rewards - rewards[:, :1]).mean(axis=1, keepdims=True)
    if baseline == "group":
        return mean
    size = rewards.shape[1]
    return mean + (mean - rewards) / (size - 1)


def scale_of(rewards: jax.Array, scale: str, ddof: int, epsilon: float, lone: bool) -> jax.Array | float:
    """What the centred rewards [P, G] are divided by; shape [P, 1] or a scalar."""
    if scale == "batch" and rewards.size > ddof:
        return rewards.std(ddof=ddof) + epsilon
    if scale == "none":
        return 1.0
    if lone or scale == "batch":
        return 1.0 + epsilon
    return (rewards.mean(1, keepdims=True) if scale == "mean" else rewards.std(1, ddof=ddof, keepdims=True)) + epsilon


def whiten(
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    ddof: int = AdvantageConfig.ddof,
    epsilon: float = VARIANCE_EPSILON,
) -> jax.Array:
    """Values [...] moved to mean 0 and variance 1 over the places where `mask` is 1; 0 elsewhere.

    REINFORCE++ (2501.03262) whitens [rows, tokens] with the completion's mask, so that long rows weigh more.
    """
    weight = jnp.ones_like(values) if mask is None else mask.astype(values.dtype)
    values = jnp.where(weight > 0, values, 0)
    count = weight.sum()
    centred = (values - (values * weight).sum() / jnp.maximum(count, 1)) * weight
    variance = jnp.square(centred).sum() / jnp.maximum(count - ddof, 1)
    return centred * jax.lax.rsqrt(variance + epsilon)
