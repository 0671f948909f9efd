"""Advantages: how much better each completion was than what could be expected for its prompt."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl.kl import check
from settings.rl import BASELINES, GROUPED, SCALES, SINGLETONS, AdvantageConfig

VARIANCE_EPSILON = 1e-8  # verl's; the setting rl.epsilon is added to a deviation


def advantages(
    rewards: jax.Array | np.ndarray,
    group_of: np.ndarray | None = None,
    *,
    baseline: str = AdvantageConfig.baseline,
    scale: str = AdvantageConfig.scale,
    ddof: int = AdvantageConfig.ddof,
    epsilon: float = AdvantageConfig.epsilon,
    singleton: str = AdvantageConfig.singleton,
) -> Float[Array, "..."]:
    """Rewards [N] of the completions of prompts `group_of` [N], minus a baseline, over a scale -> [N].

    Groups may differ in size. Rewards [P, G] of P prompts x G completions are taken as well, without `group_of`, and
    give [P, G].

    baseline: "group" (the prompt's mean), "leave_one_out" (the mean of the prompt's other completions),
    "batch" (the mean of all) or "none". scale: "group" or "batch" (standard deviation of the prompt's rewards
    or of all rewards, plus `epsilon`), "whiten" (what is left of the rewards is made zero-mean with unit
    variance over the batch), "mean" (the prompt's mean, for rewards that are never negative) or "none".

    Libraries differ. ddof: 1 (the variance over n - 1) in TRL, verl and Tunix, 0 in simply, nano-aha-moment and
    GRPO-Zero. epsilon: 1e-4 TRL, 1e-6 verl and Tunix, 1e-8 oat, 1e-9 OpenRLHF.

    A prompt with one completion has neither a group mean nor a group deviation. singleton="raw" or "" keeps its
    reward as it is (verl's choice: REINFORCE without a baseline); "zero" gives it the advantage 0, hence no signal
    (TRL's). A run must choose (settings/rl.py). Raises ValueError for an unknown name, for rewards that are
    neither [N] with `group_of` [N] nor [P, G] without.

    Source: GRPO, DeepSeekMath (2402.03300), section 4.1.2 (group, group); Dr. GRPO (2503.20783), section 3.2
    (group, none); RLOO (2402.14740), section 3 (leave_one_out, none); REINFORCE++ with baseline (2501.03262),
    (group, whiten); MaxRL (group, mean).
    """
    check(baseline=(baseline, BASELINES), scale=(scale, SCALES), singleton=(singleton, ("", *SINGLETONS)))
    rewards = jnp.asarray(rewards)
    if group_of is not None:
        table, present, place = by_group(rewards, np.asarray(group_of))
    elif rewards.ndim == 2:
        table, present, place = rewards, None, None
    else:
        raise ValueError(f"rewards are [N] with group_of [N], or [prompts, completions]; got shape {rewards.shape}")
    sizes = np.full((len(table), 1), table.shape[1]) if present is None else present.sum(1, keepdims=True)
    centred = table - baseline_of(table, baseline, sizes, present)
    if scale == "whiten":
        scaled = whiten(centred, None if present is None else jnp.asarray(present), ddof=ddof)
    else:
        scaled = centred / scale_of(table, scale, ddof, epsilon, sizes, present)
    if singleton == "zero" and {baseline, scale} & GROUPED:
        scaled = jnp.where(sizes == 1, 0, scaled)
    return scaled if place is None else scaled[place]


def by_group(rewards: jax.Array, group_of: np.ndarray) -> tuple[jax.Array, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Rewards [N] as a table [P, largest group], where in it they are, and the place (rows, columns) of each.

    Columns without a reward repeat the group's first. Raises ValueError unless there is a group for each reward.
    """
    if rewards.ndim != 1 or group_of.shape != rewards.shape:
        raise ValueError(f"group_of {group_of.shape} must say which group each of rewards {rewards.shape} belongs to")
    _, first, row, sizes = np.unique(group_of, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(row, kind="stable")
    column = np.empty(len(row), int)
    column[order] = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    number = np.repeat(first[:, None], sizes.max(), 1)
    number[row, column] = np.arange(len(row))
    return rewards[number], np.arange(sizes.max()) < sizes[:, None], (row, column)


def baseline_of(rewards: jax.Array, baseline: str, sizes: np.ndarray, present: np.ndarray | None) -> jax.Array | float:
    """What is subtracted from the rewards [P, G] of groups of `sizes` [P, 1]; shape [P, G], [P, 1] or a scalar.

    `present` [P, G]: where there are rewards (None: everywhere).
    """
    if baseline == "batch":
        return rewards.mean(where=present)
    if baseline == "none":
        return 0.0
    # Counted from the first: equal rewards, whatever they are, must leave exactly 0, which an epsilon cannot blow up.
    mean = rewards[:, :1] + (rewards - rewards[:, :1]).mean(axis=1, keepdims=True, where=present)
    if baseline == "leave_one_out":
        mean = mean + (mean - rewards) / np.maximum(sizes - 1, 1)
    return jnp.where(sizes == 1, 0, mean)


def scale_of(
    rewards: jax.Array, scale: str, ddof: int, epsilon: float, sizes: np.ndarray, present: np.ndarray | None
) -> jax.Array | float:
    """What the centred rewards [P, G] are divided by; shape [P, 1] or a scalar; arguments as of `baseline_of`."""
    if scale == "batch" and sizes.sum() > ddof:
        return rewards.std(ddof=ddof, where=present) + epsilon
    if scale == "none":
        return 1.0
    if scale == "batch":
        return 1.0 + epsilon
    if scale == "mean":
        spread = rewards.mean(1, keepdims=True, where=present)
    else:
        spread = rewards.std(1, ddof=ddof, keepdims=True, where=present)
    return jnp.where(sizes == 1, 1.0, spread) + epsilon


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
