"""Head2Toe, and the probes it is compared with: of all layers without selection, and of the last layer.

    features = collect({"embedding": x, "attention 0": y, ...}, mask, how=2)
    probe = head2toe(features.rows(train), labels[train], Plan(share=0.05, coefficient=1e-3))
    accuracy(probe, features.rows(test), labels[test]), probe.layer_shares

Source: Head2Toe (2201.03529), section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from analysis.probes.features import Features, check_examples, columns_of, normalised
from analysis.probes.fitting import Head, Plan, fit, largest_coefficient, relevance
from analysis.probes.selection import LayerShare, layer_shares, select

LINEAR = Plan()


@dataclasses.dataclass(frozen=True)
class Probe:
    """A head on chosen features.

    layers, layer_of [F]: of the features it was fitted to; chosen [K]: their numbers; head: weights [K, C], bias [C];
    scores [F]: by which they were chosen, None where all were taken; layer_shares: where they are.
    """

    layers: tuple[str, ...]
    layer_of: np.ndarray
    chosen: np.ndarray
    head: Head
    scores: np.ndarray | None
    layer_shares: tuple[LayerShare, ...]


def head2toe(
    features: Features, labels: ArrayLike, plan: Plan, *, which: str = "top", seed: int = 0, classes: int | None = None
) -> Probe:
    """Fits a head with the plan's group lasso, keeps the share of features that score highest, fits a fresh head.

    Each layer's features of an example have length 1, once all together and again those that are kept; the fresh head
    has no penalty. labels [N]: 0 .. classes - 1. which: "random" and "bottom" are controls (`select`). What is not to
    be learnt from must not be among the features: no row of a test set is ever asked for.

    Raises ValueError as `check_examples` and `select`, and where the penalty switches off all features.
    """
    targets, count = check_examples(features, labels, classes)
    table = normalised(features.values, features.layer_of, len(features.layers))
    scores = relevance(fit(table, targets, count, plan, plan.coefficient).weights)
    if not scores.any():
        most = largest_coefficient(table, targets, count)
        raise ValueError(
            f"a penalty of {plan.coefficient:g} switches off all {len(scores)} features: choose less than {most:.3g}"
        )
    chosen = select(scores, plan.share, which, seed)
    return _fresh(features, targets, count, plan, chosen, scores)


def linear_probe(
    features: Features,
    labels: ArrayLike,
    plan: Plan = LINEAR,
    *,
    layers: Sequence[str] | None = None,
    classes: int | None = None,
) -> Probe:
    """A head on all features of some layers (default: of all), without penalty or selection; raises as `head2toe`."""
    targets, count = check_examples(features, labels, classes)
    chosen = columns_of(features, features.layers if layers is None else layers)
    return _fresh(features, targets, count, plan, chosen, None)


def last_layer_probe(
    features: Features, labels: ArrayLike, plan: Plan = LINEAR, *, classes: int | None = None
) -> Probe:
    """A head on the features of the last layer, what a linear probe usually is; raises as `head2toe`."""
    return linear_probe(features, labels, plan, layers=features.layers[-1:], classes=classes)


def predict(probe: Probe, features: Features) -> np.ndarray:
    """The class [N] that a probe gives to each example; raises ValueError for features of other layers or widths."""
    if features.layers != probe.layers or not np.array_equal(features.layer_of, probe.layer_of):
        raise ValueError(
            f"the probe was fitted to {len(probe.layer_of)} features of {', '.join(probe.layers)};"
            f" these are {len(features.layer_of)} of {', '.join(features.layers)}"
        )
    return (_on(features, probe.chosen) @ probe.head.weights + probe.head.bias).argmax(1)


def accuracy(probe: Probe, features: Features, labels: ArrayLike) -> float:
    """The share of examples to which a probe gives their label [N]; raises ValueError for labels of another number."""
    targets = np.asarray(labels)
    if targets.shape != (len(features.values),):
        raise ValueError(f"labels are [N] for {len(features.values)} examples, found shape {targets.shape}")
    return float((predict(probe, features) == targets).mean())


def _on(features: Features, chosen: np.ndarray) -> np.ndarray:
    """The chosen features, normalised anew."""
    return np.asarray(normalised(features.values[:, chosen], features.layer_of[chosen], len(features.layers)))


def _fresh(
    features: Features, labels: np.ndarray, classes: int, plan: Plan, chosen: np.ndarray, scores: np.ndarray | None
) -> Probe:
    """A head without penalty on the chosen features."""
    width = len(chosen) if scores is None else int(len(scores) * plan.share)
    # Fewer may be chosen than asked for, another number in every fold: columns of zeros learn nothing, and one width
    # is one program.
    table = np.pad(_on(features, chosen), ((0, 0), (0, width - len(chosen))))
    head = fit(table, labels, classes, plan)
    head = dataclasses.replace(head, weights=head.weights[: len(chosen)])
    return Probe(features.layers, features.layer_of, chosen, head, scores, layer_shares(chosen, features))
