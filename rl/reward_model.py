"""A reward model as a reward: how good another model finds what was said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data.names import unknown_name
from infer.reward_model import AGGREGATES, BATCH, RewardModel, open_reward_model
from rl.reward_functions import Reward, Sample

NORMALISE = ("none", "batch")
Open = Callable[..., RewardModel]


def model_reward(
    path: str,
    normalise: str = "none",
    shift: float = 0.0,
    scale: float = 1.0,
    steps: str = "",
    separator: str = "\n",
    batch: int = BATCH,
    open_model: Open = open_reward_model,
) -> Reward:
    """The score of a frozen reward model in folder `path`, `batch` texts at a time on the devices: (score - shift) x
    scale, or with normalise="batch" less the rollout's mean and over its deviation.

    `steps`, a name of AGGREGATES, makes one number of the probabilities of all steps, which end in `separator`, by a
    process reward model. Raises ValueError for a folder that holds no model of scores, and for unknown names.
    """
    if normalise not in NORMALISE:
        raise unknown_name("normalise of the reward model", normalise, NORMALISE)
    if steps and steps not in AGGREGATES:
        raise unknown_name("steps of the reward model", steps, AGGREGATES)
    reward = open_model(path, batch=batch)
    if steps and reward.model.config.score.size < 2:
        raise ValueError(f"steps={steps!r} needs a process reward model, and {path} holds one of whole texts")

    def score(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
        del group_of
        prompts, texts = [sample.prompt for sample in samples], [sample.text for sample in samples]
        if steps:
            found = np.array([AGGREGATES[steps](each) for each in reward.steps(prompts, texts, separator)])
        else:
            found = reward(prompts, texts)
        if normalise == "batch":
            return (found - found.mean()) / (found.std() + 1e-6)
        return (found - shift) * scale

    return score
