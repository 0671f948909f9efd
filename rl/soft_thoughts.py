"""Thoughts as actions of a policy (Latent-GRPO, 2604.27998): how an update replays them and learns from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from infer.feedback import feedback_of, mix
from infer.sampler import Rollout
from infer.thoughts import Thoughts
from model.latent import THOUGHTS
from model.lm import Model, Output, Params
from rl.actions import Actions, row_gains
from rl.batch import RolloutRows
from rl.soft_density import soft_density


def replay_options(model: Model, params: Params, batch: RolloutRows, thoughts: Thoughts | None) -> dict[str, Any]:
    """The options of `read_rows` by which rows think what their samples thought; {} where they have no thoughts.

    Soft thoughts that were drawn are actions: no gradient runs through their embeddings. Raises ValueError for rows
    without what their noise came from.
    """
    if thoughts is None:
        return {}
    if thoughts.noise.quiet:
        feedback = feedback_of(model, params, thoughts.soft)
        return {} if feedback is None else {"feedback": feedback}
    drawn = batch.thought_seeds if thoughts.noise.dropout else batch.soft_ids
    if drawn is None:
        raise ValueError(
            f"{thoughts.noise}: rows without the seeds or tokens of their thoughts would be learnt from with other"
            " thoughts than they were sampled with, and no ratio would be 1"
        )
    if thoughts.noise.dropout:
        return {"feedback": feedback_of(model, params, None, thoughts.noise, batch.thought_seeds)}
    assert thoughts.soft is not None
    fed = mix(model, stop_gradient(params), batch.soft_ids, batch.soft_scores, thoughts.soft)
    return {"patches": {THOUGHTS: fed}}


def thought_actions(model: Model, params: Params, batch: RolloutRows, out: Output) -> Actions:
    """The densities of a batch's soft thoughts under `params`, from the output over its whole rows."""
    first, count = batch.shared.first, batch.soft_ids.shape[1]
    logps = jax.nn.log_softmax(model.logits(params, out.hidden[:, first - 1 : first - 1 + count]))
    gains = jnp.broadcast_to(row_gains(batch)[:, None], batch.soft_mask.shape)
    density = soft_density(batch.soft_scores, jnp.take_along_axis(logps, batch.soft_ids, -1), gains)
    return Actions(density, batch.soft_density, batch.soft_mask)


def first_thoughts(rollout: Rollout, density: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The mask [N, n] of thoughts that leaves the first one to one sample of each group: of those whose advantage
    (`gains` [N] or [N, T]) is above 0 the likeliest, by the mean over its thoughts (`density` [N, n]) and tokens.

    Of two good mixtures the mean may be bad (2604.27998, section 3.4). A group without such a sample has none.
    """
    good = (gains if gains.ndim == 1 else (gains * rollout.mask).sum(1)) > 0
    mean = (density.sum(1) + rollout.logps.sum(1)) / (density.shape[1] + rollout.lengths)
    likely = np.where(good, mean, -np.inf)
    kept = np.ones_like(density)
    kept[:, 0] = 0
    for group in np.unique(rollout.group_of):
        rows = np.flatnonzero(rollout.group_of == group)
        best = rows[likely[rows].argmax()]
        kept[best, 0] = float(good[best])
    return kept
