"""What a sample did before its completion that is learnt from like tokens: soft thoughts, a depth drawn by the gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from rl.batch import RolloutRows


class Actions(NamedTuple):
    """Log-probs (or densities) of a row's actions, under the policy that learns and the one that sampled, and 1 for
    those that are learnt from: [N, n] each.
    """

    logps: Float[Array, "N n"]
    old_logps: Float[Array, "N n"]
    mask: Float[Array, "N n"]


def row_gains(batch: RolloutRows) -> Float[Array, " N"]:
    """The advantage of each row's actions: its own, or the mean of its tokens'."""
    gains = jnp.asarray(batch.advantages)
    return gains if gains.ndim == 1 else (gains * batch.mask).sum(1) / jnp.maximum(batch.mask.sum(1), 1)


def with_actions(batch: RolloutRows, actions: Actions, **arrays: jax.Array | None) -> dict[str, Any]:
    """The arguments of `policy_loss` for rows [actions | completion]: an action is a token like any other, but for the
    KL and the entropy bonus, which are of completions alone.

    `arrays`: logps, old_logps, ref_logps, entropies, weights [N, T], or None.
    """
    constant = stop_gradient(actions.logps)
    filled = {"logps": actions.logps, "old_logps": actions.old_logps, "ref_logps": constant}
    joined: dict[str, Any] = {
        name: jnp.concatenate([filled.get(name, jnp.full_like(constant, name == "weights")), x], 1)
        for name, x in arrays.items()
        if x is not None
    }
    gains = jnp.asarray(batch.advantages)
    if gains.ndim == 2:
        gains = jnp.concatenate([jnp.repeat(row_gains(batch)[:, None], constant.shape[1], 1), gains], 1)
    return joined | {"advantages": gains, "mask": jnp.concatenate([actions.mask, batch.mask], 1)}
