"""Depths as actions of a policy: the exit gate, read at the end of a prompt, learns from what its iterations earned.

So does the model that it reads, in every iteration, unless the gate learns alone (`recurrent.exit_stage="gate"`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from infer.gate_depths import prompt_exits
from model.lm import Model, Params
from rl.actions import Actions
from rl.batch import RolloutRows


def depth_logps(model: Model, params: Params, batch: RolloutRows) -> Float[Array, " N"]:
    """The log-probs of the depths that a batch's samples drew."""
    exits = prompt_exits(model, params, batch.shared.tokens, batch.shared.segments)
    return exits[batch.depth - 1, batch.prompt_of]


def depth_actions(model: Model, params: Params, batch: RolloutRows) -> Actions:
    """One action a row; a row without advantage, such as one that was cut and is left out, moves nothing by it."""
    logps, old_logps = depth_logps(model, params, batch)[:, None], batch.depth_logps[:, None]
    return Actions(logps, old_logps, jnp.ones_like(old_logps))
