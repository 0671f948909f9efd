"""Which features are kept, how they spread over the layers, and how well a ranking finds those that matter."""

from __future__ import annotations

import dataclasses

import numpy as np

from analysis.probes.features import Features
from settings.setting import unknown

SELECTIONS = ("top", "random", "bottom")


@dataclasses.dataclass(frozen=True)
class LayerShare:
    """How many features of a layer are `kept` of its `features`, and their share of all that are kept."""

    layer: str
    kept: int
    features: int
    share: float


def kept_count(scores: np.ndarray, share: float) -> int:
    """How many features are kept of those with scores [F]: int(F * share), but no more than score above 0.

    Features that a penalty switched off all score 0: which of them to keep, nothing says. Raises ValueError where none
    is left or the share keeps none.
    """
    asked, alive = int(len(scores) * share), int((np.asarray(scores) > 0).sum())
    if not asked:
        raise ValueError(f"a share of {share:g} keeps none of {len(scores)} features: at least {1 / len(scores):.2g}")
    if not alive:
        raise ValueError(f"all {len(scores)} features score 0: choose a smaller penalty")
    return min(asked, alive)


def select(scores: np.ndarray, share: float, which: str = "top", seed: int = 0) -> np.ndarray:
    """The numbers, ascending, of the features with the highest scores [F]; `kept_count` says how many.

    which: "top", or as a control as many of the "bottom" or at "random". Equal scores are ordered by chance, from the
    seed; by their order, the first layer would be preferred. Raises ValueError for scores that are NaN or infinite.
    """
    if which not in SELECTIONS:
        raise ValueError(unknown("selection", which, SELECTIONS))
    scores = np.asarray(scores)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores are [F] and finite, found shape {scores.shape}, {(~np.isfinite(scores)).sum()} not so"
        )
    count = kept_count(scores, share)
    chance = np.random.default_rng(seed).permutation(len(scores))
    order = chance if which == "random" else np.lexsort((chance, scores if which == "bottom" else -scores))
    return np.sort(order[:count])


def layer_shares(chosen: np.ndarray, features: Features) -> tuple[LayerShare, ...]:
    """How chosen features, by number, spread over the layers, in the order of the layers."""
    own = np.bincount(features.layer_of, minlength=len(features.layers))
    kept = np.bincount(features.layer_of[chosen], minlength=len(features.layers))
    return tuple(
        LayerShare(layer, int(k), int(n), float(k / kept.sum()))
        for layer, k, n in zip(features.layers, kept, own, strict=True)
    )


def ranking_auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """The chance that a relevant item scores more than another, ties counting half: the area under the ROC curve.

    scores [F]; relevant [F]: True or 1 where it is. Raises ValueError for other shapes, NaN, and where all or none are.
    """
    scores, wanted = np.asarray(scores), np.asarray(relevant).astype(bool)
    if scores.ndim != 1 or scores.shape != wanted.shape or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape} and relevant {wanted.shape} must both be [F], without NaN")
    count = int(wanted.sum())
    others = len(scores) - count
    if not count or not others:
        raise ValueError(f"{count} of {len(scores)} items are relevant: a ranking needs both kinds")
    _, place, repeats = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[place]
    return float((ranks[wanted].sum() - count * (count + 1) / 2) / (count * others))
