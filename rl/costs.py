"""What the samples of a rollout pay for their tokens and for their iterations."""

from __future__ import annotations

import numpy as np

from infer.gate_depths import check_gate
from infer.sampler import Rollout
from model.lm import Model
from rl.experience import mean_depths
from rl.rules import RolloutRules
from settings.data import BY_GATE
from settings.rl import DEPTHS
from settings.setting import unknown


def check_depth_rules(model: Model, rules: RolloutRules) -> None:
    """Raises ValueError for depths that the model does not have or that nothing would vary."""
    if rules.depth not in DEPTHS:
        raise ValueError(unknown("rl.depth", rules.depth, DEPTHS))
    recurrent, draw = model.config.depth == "recurrent", model.config.recurrent.draw
    if rules.depth == "drawn" and not (recurrent and draw in ("poisson", "lognormal")):
        raise ValueError(
            f'rl.depth="drawn" takes a recurrent model with recurrent.draw="poisson" or "lognormal"; found {draw!r}'
        )
    if rules.depth == "task" and not recurrent:
        raise ValueError('rl.depth="task" is for recurrent models, and this one is a plain stack')
    if rules.depth == BY_GATE:
        check_gate(model, "rl.depth")
    if rules.depth_cost and rules.depth not in ("drawn", BY_GATE):
        raise ValueError(
            f'rl.depth_cost={rules.depth_cost} costs all samples the same unless rl.depth is "drawn" or "gate"'
        )


def costs(rollout: Rollout, rules: RolloutRules) -> np.ndarray:
    """What each sample pays [N] for its tokens, and for its iterations per token."""
    paid = rules.token_cost * rollout.lengths
    return paid if rollout.depth is None else paid + rules.depth_cost * mean_depths(rollout)
