"""Plans compared by cross-validation within the training examples alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from analysis.probes.features import Features, check_examples
from analysis.probes.fitting import Plan
from analysis.probes.head2toe import accuracy, head2toe


@dataclasses.dataclass(frozen=True)
class Choice:
    """The plan with the highest mean accuracy over folds, the first of equals; accuracies [plans, folds] of all."""

    plan: Plan
    plans: tuple[Plan, ...]
    accuracies: np.ndarray


def folds_of(n: int, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each fold the rows to fit and the rows to measure, disjoint, in a random order that the seed fixes.

    Each measures n // folds rows; the up to folds - 1 that are left are fitted to in all of them. Raises ValueError for
    fewer than two folds and more than examples.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"folds must lie in 2 .. {n}, the number of examples, found {folds}")
    order, size = np.random.default_rng(seed).permutation(n), n // folds
    parts = [order[i * size : (i + 1) * size] for i in range(folds)]
    return [(np.setdiff1d(order, part, assume_unique=True), part) for part in parts]


def cross_validate(
    features: Features,
    labels: ArrayLike,
    plans: Sequence[Plan],
    *,
    folds: int = 5,
    seed: int = 0,
    classes: int | None = None,
) -> Choice:
    """Fits each plan to all folds but one, ranking and selection included, and measures it on that one, in turns.

    Give the training examples alone: what is chosen here may then be fitted to all of them and measured, once, on
    others. Raises ValueError as `head2toe` and `folds_of`, and for no plan.
    """
    if not plans:
        raise ValueError("no plans: give at least one")
    targets, count = check_examples(features, labels, classes)
    parts = folds_of(len(targets), folds, seed)
    table = np.empty((len(plans), folds))
    for i, plan in enumerate(plans):
        for j, (fitted, measured) in enumerate(parts):
            probe = head2toe(features.rows(fitted), targets[fitted], plan, seed=seed, classes=count)
            table[i, j] = accuracy(probe, features.rows(measured), targets[measured])
    return Choice(plans[int(table.mean(1).argmax())], tuple(plans), table)
