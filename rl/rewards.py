"""Rewards by name, and several of them as one: weighted, gated, and never silent about what could not be computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.names import check_options, unknown_name
from infer.reward_model import open_reward_model
from rl.reward_functions import (
    Reward,
    Sample,
    accuracy,
    cosine_length,
    format_reward,
    kimi_length,
    overlong,
    repetition,
    script,
    tag_count,
)
from rl.reward_language import language
from rl.reward_model import Open, model_reward
from settings.rl import COMPOSITIONS, RewardConfig

__all__ = ["REWARDS", "Reward", "Sample", "Scores", "build_reward", "build_rewards", "compose", "reward_metrics"]

REWARDS: dict[str, Callable[..., Reward]] = {
    "accuracy": accuracy,
    "format": format_reward,
    "tag_count": tag_count,
    "language": language,
    "kimi_length": kimi_length,
    "cosine_length": cosine_length,
    "overlong": overlong,
    "repetition": repetition,
    "script": script,
    "model": model_reward,
}


@dataclass(frozen=True)
class Scores:
    """What N samples earned.

    `total` [N] float32; `parts`: each reward [N] before its weight; `errors`: for each reward the number of samples it
    could not be computed for, which count 0; `complaints`: a sentence for each reward with errors.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    errors: dict[str, int]
    complaints: tuple[str, ...]


# (samples [N], group_of [N], or the size of groups that are alike) -> what they earned
Scorer = Callable[[Sequence[Sample], "np.ndarray | int"], Scores]


def build_reward(name: str, open_model: Open = open_reward_model, /, **options: Any) -> Reward:
    """The reward of a name in REWARDS; ValueError for an unknown name, an unknown or missing option, or a bad value.

    `open_model(path, batch=...)` opens the reward model of one that needs it.
    """
    if name not in REWARDS:
        raise unknown_name("reward", name, REWARDS)
    known = dict(inspect.signature(REWARDS[name]).parameters)
    opens = {"open_model": open_model} if known.pop("open_model", None) else {}
    check_options(f"reward {name!r}", options, known)
    missing = [key for key, option in known.items() if option.default is option.empty and key not in options]
    if missing:
        options_said = ", ".join(f"rl.rewards.{name}.{key}" for key in missing)
        raise ValueError(f"reward {name!r} needs {', '.join(missing)}: set {options_said}")
    try:
        return REWARDS[name](**options, **opens)
    except TypeError as error:
        raise ValueError(f"reward {name!r} cannot take {options}: {error}") from error


def build_rewards(
    table: Mapping[str, float | Mapping[str, Any]],
    *,
    how: str = RewardConfig.compose,
    gate: str = RewardConfig.gate,
    open_model: Open = open_reward_model,
) -> Scorer:
    """The scorer of a table: metric name -> a weight, or a mapping of `weight` (1), `kind` (the name) and options.

    `{"accuracy": 1.0, "overlong": {"weight": 0.5, "buffer": 64}}`. Errors are those of `build_reward` and `compose`.
    """
    entries: dict[str, dict[str, Any]] = {
        name: dict(entry) if isinstance(entry, Mapping) else {"weight": entry} for name, entry in table.items()
    }
    weights = {name: entry.pop("weight", 1.0) for name, entry in entries.items()}
    rewards = {name: build_reward(entry.pop("kind", name), open_model, **entry) for name, entry in entries.items()}
    return compose(rewards, weights, how=how, gate=gate)


def compose(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float] | None = None,
    *,
    how: str = RewardConfig.compose,
    gate: str = RewardConfig.gate,
) -> Scorer:
    """The scorer of several rewards: a weighted sum, a missing weight being 1.

    how="gated": the reward `gate` always counts, the others only for samples where it is 1, so that a wrong answer
    (or, with gate="format", an unreadable one) cannot earn by its form, nor pay for it. Raises ValueError for no
    rewards, unknown names, and weights that are no finite numbers.
    """
    check_composition(rewards, weights or {}, how, gate)
    weight = {name: float((weights or {}).get(name, 1.0)) for name in rewards}

    def score(samples: Sequence[Sample], groups: np.ndarray | int) -> Scores:
        group_of = groups_of(samples, groups)
        parts, errors, complaints = {}, {}, []
        for name, reward in rewards.items():
            parts[name], faults = measured(reward, samples, group_of)
            errors[name] = len(faults)
            complaints += [complaint(name, faults, samples)] if faults else []
        counts = parts[gate] >= 1 if how == "gated" else np.ones(len(samples), bool)
        total = sum(weight[name] * np.where(counts | (name == gate), part, 0) for name, part in parts.items())
        return Scores(np.asarray(total, np.float32), parts, errors, tuple(complaints))

    return score


def check_composition(rewards: Mapping[str, Reward], weights: Mapping[str, float], how: str, gate: str) -> None:
    """Raises ValueError for rewards that cannot be added up as asked."""
    if not rewards:
        raise ValueError("there are no rewards to compose: name at least one, such as accuracy")
    if how not in COMPOSITIONS:
        raise unknown_name("way to compose rewards", how, COMPOSITIONS)
    if how == "gated" and gate not in rewards:
        raise unknown_name("reward for a gate", gate, rewards)
    for name, value in weights.items():
        if name not in rewards:
            raise unknown_name("reward with a weight", name, rewards)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"the weight of reward {name!r} must be a finite number, found {value!r}")


def groups_of(samples: Sequence[Sample], groups: np.ndarray | int) -> np.ndarray:
    """The group of each sample [N], also where only the size of all of them is given.

    Raises ValueError for samples that are not whole groups, and where there is not a group for each.
    """
    if isinstance(groups, int | np.integer):
        if groups < 1 or not samples or len(samples) % groups:
            raise ValueError(
                f"rewards take whole groups of samples, found {len(samples)} samples in groups of {groups}"
            )
        return np.arange(len(samples)) // groups
    if not samples or np.shape(groups) != (len(samples),):
        raise ValueError(f"group_of of shape {np.shape(groups)} must name the group of each of {len(samples)} samples")
    return np.asarray(groups)


def measured(reward: Reward, samples: Sequence[Sample], group_of: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """A reward's values [N] with 0 where it failed, and there the reasons by sample."""
    found = attempt(reward, samples, group_of)
    faults: dict[int, str] = {}
    if isinstance(found, str):
        found = np.zeros(len(samples), np.float32)
        for group in np.unique(group_of):
            members = np.flatnonzero(group_of == group)
            found[members], own = rescue(reward, [samples[int(n)] for n in members])
            faults |= {int(members[n]): why for n, why in own.items()}
    for n in np.flatnonzero(~np.isfinite(found)):
        faults.setdefault(int(n), f"it returned {found[n]}")
    return np.where(np.isfinite(found), found, 0).astype(np.float32), dict(sorted(faults.items()))


def attempt(reward: Reward, samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray | str:
    """The values [N] of a reward, or why there are none."""
    try:
        values = np.asarray(reward(samples, group_of), np.float32)
    # Whatever a reward of the user's raises, hours of training must not end by it; the reason is counted and told.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if values.shape != (len(samples),):
        return f"it returned shape {values.shape} for {len(samples)} samples"
    return values


def rescue(reward: Reward, group: Sequence[Sample]) -> tuple[np.ndarray, dict[int, str]]:
    """A group's values with NaN for the samples that fail also by themselves, and the reasons.

    The others are computed beside a sound sample in the failing one's place, which leaves a group's extremes as they
    are. Where that fails too, so does the whole group.
    """
    size, one = len(group), np.zeros(len(group), int)
    whole = attempt(reward, group, one)
    if not isinstance(whole, str):
        return whole, {}
    alone = [attempt(reward, [sample] * size, one) for sample in group]
    faults = {n: why for n, why in enumerate(alone) if isinstance(why, str)}
    sound = [sample for n, sample in enumerate(group) if n not in faults]
    values = attempt(reward, [sound[0] if n in faults else s for n, s in enumerate(group)], one) if sound else whole
    if isinstance(values, str):
        return np.full(size, np.nan, np.float32), dict.fromkeys(range(size), values) | faults
    return np.where([n in faults for n in range(size)], np.nan, values), faults


def complaint(name: str, faults: Mapping[int, str], samples: Sequence[Sample]) -> str:
    """One sentence: which reward, how often, the first sample and why."""
    first = next(iter(faults))
    return (
        f"reward {name!r} could not be computed for {len(faults)} of {len(samples)} samples, which score 0 in it; the"
        f" first is sample {first}, to the prompt ending in {samples[first].prompt[-60:]!r}: {faults[first]}"
    )


def reward_metrics(scores: Scores) -> dict[str, float]:
    """`rewards/<name>/mean`, `/std` (over all samples, ddof 0) and `/errors` of every reward, before its weight."""
    return {
        f"rewards/{name}/{key}": float(value)
        for name, part in scores.parts.items()
        for key, value in (("mean", part.mean()), ("std", part.std()), ("errors", scores.errors[name]))
    }
