"""Accuracy over compute as a sigmoid, and where it levels off (ScaleRL, 2510.13786).

    fit = fit_sigmoid(compute, accuracy, before=.2)
    fit.asymptote, fit.at(1e18)

R(C) = R0 + (A - R0) / (1 + (Cmid / C)^B): a run begins at R0, is half way at Cmid and ends at A. A, the asymptote, is
what a recipe can reach; B is how fast it gets there.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, " n"]

FEWEST = 8  # points of a fit
EDGES = (-0.05, 1.05)  # of the grid over A: a little beyond what a share can be, so that 0 and 1 lie inside
EARLY = 100  # the least Cmid is so many times less than the first point: a run may have risen by then
COARSE, FINE, ZOOMS = 111, 21, 6  # values of A and of Cmid: at first, and then around the best ones, so many times
INSIDE = 0.01  # how far shares of the way from R0 to A are held from 0 and 1, where their logits end
SLOWEST = 0.3  # the least B: a slower curve stays half way between R0 and A, and tells neither
CLEAR = 4  # deviations that a curve must rise or fall by for it not to be flat


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """R0 `before`, A `asymptote`, B `steepness`, Cmid `middle`; the number of `points` it was fitted to, and their
    standard `deviation` from it.
    """

    before: float
    asymptote: float
    steepness: float
    middle: float
    deviation: float = 0.0
    points: int = 0

    @property
    def flat(self) -> bool:
        """Whether A cannot be told from R0 by points that deviate so."""
        return abs(self.asymptote - self.before) <= CLEAR * self.deviation + 1e-9

    def at(self, compute: Points | float) -> Points:
        """R(C), of C > 0."""
        logits = self.steepness * np.log(np.asarray(compute, float) / self.middle)
        return self.before + (self.asymptote - self.before) * _sigmoid(logits)


def fit_sigmoid(compute: Points, accuracy: Points, before: float) -> Sigmoid:
    """The sigmoid of least squares through points (C, R), R a share, that begins at R0 = `before`.

    A and Cmid are tried on a grid, Cmid up to the most compute there is; of each pair B is the slope, without
    intercept, of logit((R - R0) / (A - R0)) on log(C / Cmid). A flat curve gives A = R0 as well as its noise allows.
    Raises ValueError for fewer than 8 points, for what is no share, and where the points do not show where they lead:
    the best A is an edge of the grid, or the best Cmid the most compute there is.
    """
    compute, accuracy = _checked(compute, accuracy, before)
    asymptotes = np.linspace(*EDGES, COARSE)
    middles = np.geomspace(compute.min() / EARLY, compute.max(), COARSE)
    best = _best(compute, accuracy, before, asymptotes, middles)
    for _ in range(ZOOMS):
        asymptotes = np.linspace(*_around(asymptotes, best.asymptote), FINE)
        middles = np.geomspace(*_around(middles, best.middle), FINE)
        best = min(best, _best(compute, accuracy, before, asymptotes, middles), key=lambda fit: fit.deviation)
    _refuse_edges(best, compute)
    return best


def _checked(compute: Points, accuracy: Points, before: float) -> tuple[Points, Points]:
    """Both as float64; ValueError for what cannot be fitted."""
    compute, accuracy = np.asarray(compute, float), np.asarray(accuracy, float)
    if len(compute) < FEWEST:
        raise ValueError(f"{len(compute)} points, and a sigmoid takes {FEWEST} or more: evaluate more often")
    if not ((compute > 0) & np.isfinite(compute)).all():
        raise ValueError(f"compute must be positive, found {compute.min():.3g} to {compute.max():.3g}")
    shares = np.append(accuracy, before)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares lie between 0 and 1, found {shares.min():.3g} to {shares.max():.3g}")
    return compute, accuracy


def _best(compute: Points, accuracy: Points, before: float, asymptotes: Points, middles: Points) -> Sigmoid:
    """The best of all pairs of A [a] and Cmid [m], each with its own B."""
    span, x = (asymptotes - before)[:, None], np.log(compute / middles[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):  # of A = R0, where B changes nothing
        way = np.clip(np.nan_to_num((accuracy - before) / span), INSIDE, 1 - INSIDE)
    slopes = np.log(way / (1 - way)) @ x.T / np.maximum((x**2).sum(1), 1e-12)
    fitted = before + span[..., None] * _sigmoid(slopes[..., None] * x)
    errors = np.where(slopes < SLOWEST, np.inf, ((accuracy - fitted) ** 2).sum(-1))
    i, j = np.unravel_index(np.argmin(errors), errors.shape)
    deviation = np.sqrt(errors[i, j] / (len(compute) - 3))  # three are fitted
    best = float(asymptotes[i]), float(slopes[i, j]), float(middles[j])
    return Sigmoid(before, *best, float(deviation), len(compute))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _around(values: Points, best: float) -> tuple[float, float]:
    """The neighbours but one of one of rising values, or the ends."""
    i = int(np.argmin(np.abs(values - best)))
    return float(values[max(i - 2, 0)]), float(values[min(i + 2, len(values) - 1)])


def _refuse_edges(fit: Sigmoid, compute: Points) -> None:
    told = f"A = {fit.asymptote:.3f}, B = {fit.steepness:.3g}, Cmid = {fit.middle:.3g} of {fit.points} points"
    if not EDGES[0] < fit.asymptote < EDGES[1]:
        raise ValueError(
            f"{told}: A is at the edge of its grid ({EDGES[0]:g} to {EDGES[1]:g}), so these points do not show where"
            " the curve levels off; train longer"
        )
    if fit.middle >= (1 - 1e-9) * compute.max() and not fit.flat:
        raise ValueError(
            f"{told}: the middle of the curve lies at or beyond the last point, C = {compute.max():.3g}, so these"
            " points do not show where it levels off; train longer"
        )
