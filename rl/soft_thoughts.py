"""Thoughts as actions of a policy (Latent-GRPO, 2604.27998): how an update replays them and learns from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from infer.feedback import feedback_of, mix
from infer.sampler import Rollout
from infer.thoughts import Thoughts
from model.latent import THOUGHTS
from model.lm import Model, Output, Params
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


def replayed_density(model: Model, params: Params, batch: RolloutRows, out: Output) -> Float[Array, "N n"]:
    """The densities of a batch's soft thoughts under `params`, from the output over its whole rows."""
    first, count = batch.shared.first, batch.soft_ids.shape[1]
    logps = jax.nn.log_softmax(model.logits(params, out.hidden[:, first - 1 : first - 1 + count]))
    gains = jnp.broadcast_to(thought_gains(batch)[:, None], batch.soft_mask.shape)
    return soft_density(batch.soft_scores, jnp.take_along_axis(logps, batch.soft_ids, -1), gains)


def thought_gains(batch: RolloutRows) -> Float[Array, " N"]:
    """The advantage of each row's thoughts: its own, or the mean of its tokens'."""
    gains = jnp.asarray(batch.advantages)
    return gains if gains.ndim == 1 else (gains * batch.mask).sum(1) / jnp.maximum(batch.mask.sum(1), 1)


def with_thoughts(batch: RolloutRows, density: jax.Array, **arrays: jax.Array | None) -> dict[str, Any]:
    """The arguments of `policy_loss` for rows [thoughts | completion]: a drawn thought is a token like any other, but
    for the KL and the entropy bonus, which are of completions alone.

    `arrays`: logps, old_logps, ref_logps, entropies, weights [N, T], or None.
    """
    constant = stop_gradient(density)
    filled = {"logps": density, "old_logps": batch.soft_density, "ref_logps": constant}
    count = batch.soft_mask.shape[1]
    joined: dict[str, Any] = {
        name: jnp.concatenate([filled.get(name, jnp.full_like(constant, name == "weights")), x], 1)
        for name, x in arrays.items()
        if x is not None
    }
    gains = jnp.asarray(batch.advantages)
    if gains.ndim == 2:
        gains = jnp.concatenate([jnp.repeat(thought_gains(batch)[:, None], count, 1), gains], 1)
    return joined | {"advantages": gains, "mask": jnp.concatenate([batch.soft_mask, batch.mask], 1)}


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
