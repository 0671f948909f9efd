"""What a rollout taught, as data: judged groups of samples, chosen and joined, as a training batch and as metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sources.examples import Example
from data.verify.verdict import TIMEOUT, Verdict
from infer.sampler import Rollout
from rl.rewards import Scores, reward_metrics

THOUGHTS = ("thought_seeds", "soft_ids", "soft_scores", "soft_logps")
BY_ROW = ("tokens", "logps", "mask", "lengths", "finished", "depth", "routes", *THOUGHTS)
BY_PROMPT = ("prompts", "prompt_mask", "prompt_routes")


@dataclasses.dataclass(frozen=True)
class Experience:
    """P prompts with G judged samples each; N = P x G, row p * G + g.

    `examples` P; `rollout` their samples; `texts`, `verdicts` N; `scored` what each reward gave, before costs;
    `rewards` [P, G] after them.
    """

    examples: list[Example]
    rollout: Rollout
    texts: list[str]
    verdicts: list[Verdict]
    scored: Scores
    rewards: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """The verdicts' scores [P, G]."""
        return np.array([verdict.score for verdict in self.verdicts], np.float32).reshape(self.rewards.shape)


def informative(experience: Experience) -> np.ndarray:
    """Which groups [P] hold different rewards: the others have advantage 0 and teach nothing."""
    return experience.rewards.max(1) != experience.rewards.min(1)


def choose(experience: Experience, groups: np.ndarray) -> Experience:
    """The experience of some of its prompts, by their indices, in that order."""
    group = experience.rewards.shape[1]
    rows = rows_of(np.asarray(groups), group)
    scored = dataclasses.replace(
        experience.scored,
        total=experience.scored.total[rows],
        parts={name: part[rows] for name, part in experience.scored.parts.items()},
    )
    return Experience(
        [experience.examples[p] for p in groups],
        rollout_of(experience.rollout, np.asarray(groups), rows),
        [experience.texts[n] for n in rows],
        [experience.verdicts[n] for n in rows],
        scored,
        experience.rewards[groups],
    )


def rows_of(groups: np.ndarray, size: int) -> np.ndarray:
    """The numbers of the samples of some groups, each of so many."""
    return (groups[:, None] * size + np.arange(size)).reshape(-1)


def rollout_of(rollout: Rollout, groups: np.ndarray, rows: np.ndarray) -> Rollout:
    """A rollout's prompts `groups` and samples `rows`; `steps` stay those of the whole."""
    wanted: dict[str, Any] = {name: getattr(rollout, name)[rows] for name in kept_in(rollout, BY_ROW)}
    wanted |= {name: getattr(rollout, name)[groups] for name in kept_in(rollout, BY_PROMPT)}
    place = np.zeros(len(rollout.prompts), np.int32)
    place[groups] = np.arange(len(groups))
    return dataclasses.replace(rollout, **wanted, group_of=place[rollout.group_of[rows]])


def kept_in(rollout: Rollout, names: Sequence[str]) -> list[str]:
    """Those of its arrays that a rollout has: depth and routes are of some models alone."""
    return [name for name in names if getattr(rollout, name) is not None]


def join(parts: Sequence[Experience]) -> Experience:
    """Several experiences as one, in order; shorter prompts get more padding on their left."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.scored for part in parts]
    return Experience(
        [example for part in parts for example in part.examples],
        joined_rollout([part.rollout for part in parts]),
        [text for part in parts for text in part.texts],
        [verdict for part in parts for verdict in part.verdicts],
        Scores(
            np.concatenate([score.total for score in scores]),
            {name: np.concatenate([score.parts[name] for score in scores]) for name in scores[0].parts},
            {name: sum(score.errors[name] for score in scores) for name in scores[0].errors},
            tuple(dict.fromkeys(sentence for score in scores for sentence in score.complaints)),
        ),
        np.concatenate([part.rewards for part in parts]),
    )


def joined_rollout(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one model and one limit below each other."""
    width = max(part.prompts.shape[1] for part in parts)

    def stacked(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if name in BY_PROMPT:
            sides = [((0, 0), (width - array.shape[1], 0), *[(0, 0)] * (array.ndim - 2)) for array in arrays]
            arrays = [np.pad(array, side) for array, side in zip(arrays, sides, strict=True)]
        return np.concatenate(arrays)

    joined: dict[str, Any] = {name: stacked(name) for name in kept_in(parts[0], (*BY_ROW, *BY_PROMPT))}
    before = np.cumsum([0, *(len(part.prompts) for part in parts)])
    group_of = np.concatenate([first + part.group_of for first, part in zip(before[:-1], parts, strict=True)])
    cosines = [part.thought_cosine for part in parts if part.thought_cosine is not None]
    joined["thought_cosine"] = sum(cosines) / len(cosines) if cosines else None
    return dataclasses.replace(parts[0], **joined, group_of=group_of, steps=sum(part.steps for part in parts))


def statistics(experience: Experience) -> dict[str, float]:
    """Metrics of all that was sampled, under TRL's names where it has one."""
    rollout, rewards, scores = experience.rollout, experience.rewards, experience.scores
    lengths, ended = rollout.lengths, rollout.finished
    terminated = lengths[ended] if ended.any() else np.zeros(1)
    groups = np.array(experience.texts, object).reshape(rewards.shape)
    named = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(1).mean(),
        "frac_reward_zero_std": (rewards.std(1) == 0).mean(),
        "groups/all_right": (scores >= 1).all(1).mean(),
        "groups/all_wrong": (scores <= 0).all(1).mean(),
        "num_samples": rewards.size,
        "num_tokens": lengths.sum() + (rollout.prompt_mask.sum(1) * rewards.shape[1]).sum(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": terminated.mean(),
        "completions/min_terminated_length": terminated.min(),
        "completions/max_terminated_length": terminated.max(),
        "completions/clipped_ratio": 1 - ended.mean(),
        "completions/eos_rate": ended.mean(),
        "completions/unique_ratio": np.mean([len(set(row)) / len(row) for row in groups]),
        "sampling/decode_steps": rollout.steps,
        "verify/timeouts": sum(verdict.reason == TIMEOUT for verdict in experience.verdicts),
        "score": scores.mean(),
    }
    if rollout.thought_cosine is not None:
        named["thoughts/cosine"] = rollout.thought_cosine
    if rollout.depth is not None:
        depths = mean_depths(rollout)
        named |= {"depth/mean": depths.mean(), "depth/std": depths.std()}
        varied = depths.std() > 0 and scores.std() > 0
        named["depth/score_correlation"] = np.corrcoef(depths, scores.reshape(-1))[0, 1] if varied else 0.0
    return {name: float(value) for name, value in named.items()} | reward_metrics(experience.scored)


def mean_depths(rollout: Rollout) -> np.ndarray:
    """Iterations per emitted token of each sample [N]."""
    return np.asarray(rollout.depth).sum(1) / np.maximum(rollout.lengths, 1)


def records(experience: Experience, prompts: Sequence[str], advantage: np.ndarray) -> list[dict[str, Any]]:
    """One JSON-able record per sample, for samples.jsonl; `prompts` [P], `advantage` [N]."""
    group, rollout = experience.rewards.shape[1], experience.rollout
    rows = zip(experience.texts, experience.verdicts, experience.rewards.reshape(-1), advantage, strict=True)
    found = [
        {
            "prompt": prompts[n // group],
            "completion": text,
            "reward": float(reward),
            "rewards": {name: float(part[n]) for name, part in experience.scored.parts.items()},
            "reason": verdict.reason,
            "advantage": float(gain),
            "tokens": int(rollout.lengths[n]),
        }
        for n, (text, verdict, reward, gain) in enumerate(rows)
    ]
    if rollout.depth is not None:
        for record, depth in zip(found, mean_depths(rollout), strict=True):
            record["depth"] = round(float(depth), 2)
    return found
