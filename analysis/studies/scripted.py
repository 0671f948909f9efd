"""Scripted policies of the planted subsequence, exactly: values, heterogeneity and the distribution of the return.

Everything is a dynamic program over (tokens written so far, keys of the block written so far), style by style; the
style is the first action. Fillers are one action: all have the same value. The MDP is deterministic, so that the
heterogeneity, the sum over steps of the expected variance of Q, is the variance of the return.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.tasks.planted import Style


def chances(style: Style, written: int, keys: int) -> np.ndarray:
    """The probability [keys] that a style writes the next key, after so many tokens, for each number of keys so far."""
    found = np.full(keys, style.keep)
    found[0] = style.start
    return found if written > style.wait else np.zeros(keys)


def values(style: Style, horizon: int, keys: int) -> np.ndarray:
    """The expected sum of rewards still to come, [horizon + 1, keys], by tokens written and keys of the block so far.

    Only states before the end of the block have a place here: behind it each token left earns 1.
    """
    found = np.zeros((horizon + 1, keys))
    for written in range(horizon - 1, 0, -1):
        chance = chances(style, written, keys)
        found[written] = chance * going_on(found, written) + (1 - chance) * found[written + 1, 0]
    return found


def going_on(found: np.ndarray, written: int) -> np.ndarray:
    """Q of the next key, [keys], from the values of later states: the last key earns 1, and so does all behind it."""
    horizon = len(found) - 1
    return np.append(found[written + 1, 1:], horizon - written)


def heterogeneity(styles: Sequence[Style], horizon: int, keys: int) -> float:
    """The sum over steps of E[Var_a Q(s, a)] under the mixture: sigma^2 of 2502.12118."""
    weights = np.array([style.weight for style in styles])
    tables = [values(style, horizon, keys) for style in styles]
    starts = np.array([table[1, 0] for table in tables])
    total = float(weights @ (starts - weights @ starts) ** 2)
    for style, table in zip(styles, tables, strict=True):
        reached = np.zeros(keys)
        reached[0] = style.weight
        for written in range(1, horizon):
            chance = chances(style, written, keys)
            gap = going_on(table, written) - table[written + 1, 0]
            total += float(reached @ (chance * (1 - chance) * gap**2))
            reached = _after(reached, chance)[0]
    return total


def returns(styles: Sequence[Style], horizon: int, keys: int) -> np.ndarray:
    """The probability of every sum of rewards 0..horizon under the mixture, [horizon + 1]."""
    found = np.zeros(horizon + 1)
    for style in styles:
        reached = np.zeros(keys)
        reached[0] = style.weight
        for written in range(1, horizon):
            reached, ended = _after(reached, chances(style, written, keys))
            found[horizon - written] += ended
        found[0] += reached.sum()
    return found


def _after(reached: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, float]:
    """One token later: the probability of every number of keys [keys], and that the block ends with this token."""
    onward = reached * chance
    return np.concatenate([[(reached * (1 - chance)).sum()], onward[:-1]]), float(onward[-1])


def mean(probabilities: np.ndarray) -> float:
    """The expected return."""
    return float(probabilities @ np.arange(len(probabilities)))


def of_correct(probabilities: np.ndarray) -> float:
    """The expected return of answers that have the block: what a perfect imitation of correct traces earns."""
    return mean(probabilities) / float(1 - probabilities[0])


def best_of(probabilities: np.ndarray, n: int) -> float:
    """The expected greatest of n independent returns: what the best of n earns under a perfect verifier."""
    below = np.cumsum(probabilities) ** n
    return mean(np.diff(below, prepend=0.0))


def anti_concentration(probabilities: np.ndarray, epsilon: float) -> float:
    """The probability that the return is at least its mean plus sqrt(epsilon) deviations (2502.12118)."""
    support = np.arange(len(probabilities))
    centre = mean(probabilities)
    deviation = np.sqrt(probabilities @ (support - centre) ** 2)
    return float(probabilities[support >= centre + np.sqrt(epsilon) * deviation - 1e-9].sum())
