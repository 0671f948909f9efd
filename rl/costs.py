"""What the samples of a rollout pay for their tokens and for their iterations."""

from __future__ import annotations

import numpy as np

from infer.sampler import Rollout
from model.lm import Model
from rl.experience import mean_depths
from rl.rules import RolloutRules
from settings.setting import unknown


def check_depth_rules(model: Model, rules: RolloutRules) -> None:
    """Raises ValueError for depths that the model does not have or that nothing would vary."""
    if rules.depth not in ("mean", "drawn"):
        raise ValueError(unknown("rl.depth", rules.depth, ("mean", "drawn")))
    recurrent = model.config.depth == "recurrent"
    if rules.depth == "drawn" and not (recurrent and model.config.recurrent.draw != "fixed"):
        raise ValueError('rl.depth="drawn" takes a recurrent model with recurrent.draw other than "fixed"')
    if rules.depth_cost and rules.depth != "drawn":
        raise ValueError(f'rl.depth_cost={rules.depth_cost} costs all samples the same unless rl.depth="drawn"')


def costs(rollout: Rollout, rules: RolloutRules) -> np.ndarray:
    """What each sample pays [N] for its tokens, and for its iterations per token."""
    paid = rules.token_cost * rollout.lengths
    return paid if rollout.depth is None else paid + rules.depth_cost * mean_depths(rollout)
