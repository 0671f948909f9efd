"""How deep the samples of a rollout think, and what they pay for it and for their tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from infer.sampler import Rollout
from model.depth import draw_depth
from model.lm import Model
from model.parts import unknown
from rl.experience import mean_depths
from rl.rules import RolloutRules


def depths_of(model: Model, rules: RolloutRules, samples: int, key: jax.Array) -> dict[str, Any]:
    """The arguments of `generate` that say how deep each of N samples thinks: every one its own draw, or none."""
    if rules.depth == "mean":
        return {}
    r = model.config.recurrent
    bound = rules.max_depth or 2 * r.mean
    drawn = draw_depth(dataclasses.replace(r, per_sequence=True), key, samples)
    return {"depth": np.minimum(np.asarray(drawn), bound), "max_depth": bound}


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
