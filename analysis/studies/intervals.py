"""Intervals around what was measured: of shares, of paired differences, of the slope of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964  # of 95 % of a normal distribution


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(right: int, total: int) -> Interval:
    """The share of `right` in `total` independent tries, with Wilson's interval; ValueError without tries."""
    if not 0 <= right <= total or total < 1:
        raise ValueError(f"a share needs at least 1 try and no more hits than tries, found {right} of {total}")
    share, factor = right / total, 1 / (1 + Z**2 / total)
    centre = factor * (share + Z**2 / (2 * total))
    half = factor * Z * np.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    # Rounding may leave a bound beyond what a share can be.
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Interval:
    """The mean of first - second over pairs, with the normal interval; ValueError for fewer than two pairs."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    if len(gaps) < 2:
        raise ValueError(f"a paired difference needs at least two pairs, found {len(gaps)}")
    half = Z * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return Interval(float(gaps.mean()), float(gaps.mean() - half), float(gaps.mean() + half))


def slope(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, draws: int = 2000) -> Interval:
    """The slope of the least-squares line through y [runs, N] over x [N]; its interval by drawing runs with
    replacement.
    """
    drawn = y[rng.integers(len(y), size=(draws, len(y)))].mean(1)
    slopes = np.polyfit(x, np.vstack([y.mean(0), drawn]).T, 1)[0]
    return Interval(float(slopes[0]), *map(float, np.quantile(slopes[1:], (0.025, 0.975))))
