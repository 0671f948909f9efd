"""Losses of models that score: of pairs of texts (Bradley-Terry), of steps, and of groups of steps (rStar-Math)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float, Int

from data.sources.steps import IGNORED
from train.objectives.metrics import Maximum, Metrics, Minimum

Loss = tuple[jax.Array, jax.Array, Metrics]


def bradley_terry(
    chosen: Float[Array, " N"],
    rejected: Float[Array, " N"],
    margin: Float[Array, " N"] | None = None,
    center: float = 0.0,
) -> Loss:
    """-log sigmoid(chosen - rejected - margin) of N pairs of scores, and `center` x (chosen + rejected) squared, which
    keeps scores around 0 (2312.09244; TRL's RewardTrainer). A tie counts as wrong.
    """
    n = jnp.asarray(chosen.shape[0], chosen.dtype)
    apart = chosen - rejected
    missed = -log_sigmoid(apart if margin is None else apart - margin)
    total = missed.sum() + center * ((chosen + rejected) ** 2).sum()
    both = jnp.concatenate([chosen, rejected])
    metrics: Metrics = {
        "accuracy": ((apart > 0).astype(chosen.dtype).sum(), n),
        "margin": (apart.sum(), n),
        "mean_reward": (both.sum(), 2 * n),
        "max_reward": Maximum(both.max()),
        "min_reward": Minimum(both.min()),
        "loss": (missed.sum(), n),
    }
    return total, n, jax.lax.stop_gradient(metrics)


def step_cross_entropy(logits: Float[Array, "B T C"], labels: Int[Array, "B T"]) -> Loss:
    """Cross entropy of the classes of steps, at the positions whose label is not IGNORED: none is shifted."""
    wanted = labels != IGNORED
    classes = jnp.where(wanted, labels, 0)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[..., None], -1)[..., 0]
    missed, count = -jnp.where(wanted, logps, 0).sum(), wanted.sum().astype(logits.dtype)
    right = (wanted & (logits.argmax(-1) == classes)).sum().astype(logits.dtype)
    return missed, count, jax.lax.stop_gradient({"loss": (missed, count), "accuracy": (right, count)})


def group_preference(
    chosen: Float[Array, " P"],
    rejected: Float[Array, " P"],
    weights: Float[Array, " P"],
    groups: Float[Array, ""] | float,
) -> Loss:
    """rStar-Math's process preference (2501.04519, section 3.3): -log sigmoid(chosen - rejected) of every pair of a
    right and a wrong step of one question, `weights` 1 / (n_right n_wrong) of it; the count is of questions.
    """
    apart = chosen - rejected
    total, count = -(weights * log_sigmoid(apart)).sum(), jnp.asarray(groups, chosen.dtype)
    right, n = (apart > 0).astype(chosen.dtype).sum(), jnp.asarray(chosen.shape[0], chosen.dtype)
    return total, count, jax.lax.stop_gradient({"loss": (total, count), "accuracy": (right, n)})
