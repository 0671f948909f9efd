"""Scores of examples by how often a model was right on them while it learnt: what moved, what moved with the rest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)


def variance_scores(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, float]:
    """The standard deviation (ddof 0) of every example's accuracies, in the order of `history`."""
    # Row by row: a deviation along an axis of a matrix may add up in another order and break ties differently.
    return {key: float(np.std(row)) for key, row in checked(history).items()}


def alignment_scores(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, float]:
    """How closely every example's accuracy follows the mean of all: 1 for the mean itself, in the order of `history`.

    `1 - sum_k (a_ik - mean_k)^2 / sum_k (1 - mean_k)^2` over the epochs k that every example has: lists of unequal
    length are cut to the shortest, as the code of 2504.20571 does. Raises ValueError where every example is always
    right, since the score is then 0 / 0. Source: LIMR (2502.11886), learning impact measurement.
    """
    rows = checked(history)
    epochs = min(map(len, rows.values()))
    table = np.ascontiguousarray([row[:epochs] for row in rows.values()]).T  # [epochs, examples]
    mean = table.mean(axis=1, keepdims=True)
    room = float(np.square(1 - mean).sum())
    if not room:
        raise ValueError(f"every example is right in all of the first {epochs} epochs: LIMR's score divides by 0 there")
    return dict(zip(rows, (1 - np.square(table - mean).sum(axis=0) / room).tolist(), strict=True))


def above(scores: Mapping[K, float], threshold: float) -> list[K]:
    """The keys whose score is at least `threshold`, highest first; LIMR keeps those of 0.6 and more."""
    return [key for key in ranked(scores) if scores[key] >= threshold]


def ranked(scores: Mapping[K, float]) -> list[K]:
    """Keys by score, highest first; equal scores in the order of the mapping."""
    return sorted(scores, key=lambda key: scores[key], reverse=True)


def checked(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, np.ndarray]:
    """Every example's accuracies as a float64 array; raises ValueError for what cannot be ranked."""
    rows = history.items() if isinstance(history, Mapping) else enumerate(np.asarray(history))
    found = {key: np.asarray(row, np.float64) for key, row in rows}
    if not found:
        raise ValueError("the accuracy history holds no example: record some epochs before ranking")
    for key, row in found.items():
        if row.ndim != 1 or not row.size:
            raise ValueError(f"example {key!r} must have a list of accuracies, found shape {row.shape}")
        if not ((row >= 0) & (row <= 1)).all():
            raise ValueError(f"accuracies lie in [0, 1]; example {key!r} has {row[~((row >= 0) & (row <= 1))][0]}")
    return found
