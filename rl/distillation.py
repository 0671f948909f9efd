"""A teacher's opinion of what a student said, as advantages of tokens: on-policy distillation and its kin."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

LEAST = 1e-8  # what a row without any opinion is divided by
Rows = Float[np.ndarray, "N T"]


def teacher_advantages(
    logps: Rows, teacher_logps: Rows, mask: Shaped[np.ndarray, "N T"], coef: float = 1.0, discount: float = 0.0
) -> Rows:
    """coef x (log p of the teacher - log p of the student) of every sampled token, a sample of the negative reverse KL.

    With `discount` > 0 each token earns that of those after it as well, discounted. Thinking Machines' on-policy
    distillation (tinker-cookbook, train_on_policy): added to the advantages of rewards, not centred.
    """
    gains = coef * np.where(mask > 0, teacher_logps - logps, 0.0)
    return discounted(gains, discount) * (mask > 0) if discount else gains


def single_step_returns(
    logps: Rows, teacher_logps: Rows, mask: Shaped[np.ndarray, "N T"], gamma: float = 1.0, normalise: bool = False
) -> Rows:
    """MiniLLM's returns (2306.08543, equation 4) as TRL computes them: sum over i >= t of gamma^i R_i, R_t = log p of
    the teacher - log p of the student; `normalise`: over the sum of gamma^i. gamma=0: R_t itself.

    The plain return has a factor gamma^t.
    """
    gains = np.where(mask > 0, teacher_logps - logps, 0.0)
    if not gamma:
        return gains
    weights = np.power(gamma, np.arange(logps.shape[1])) * (mask > 0)
    summed = discounted(weights * gains, 1.0)
    return summed / np.maximum(discounted(weights, 1.0), 1e-12) if normalise else summed


def early_weights(gains: Rows, gamma: float) -> Rows:
    """Weights that fall from 1 + gamma to 1 along a row, as its |gains| [N, T] are used up (TRL's IW-OPD).

    w_t = 1 + gamma (1 - sum over i < t of |A_i| / sum of |A|).
    """
    size = np.abs(gains)
    before = np.cumsum(size, 1) - size
    return 1 + gamma * (1 - before / np.maximum(size.sum(1, keepdims=True), LEAST))


def discounted(gains: Rows, discount: float) -> Rows:
    """The discounted sum of each token's gain and those after it."""
    found, later = np.zeros_like(gains), np.zeros_like(gains[:, 0])
    for column in range(gains.shape[1] - 1, -1, -1):
        later = found[:, column] = gains[:, column] + discount * later
    return found
