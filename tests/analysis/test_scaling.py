"""The sigmoid of ScaleRL (2510.13786): its values, its fit, noise, flat curves, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from analysis.scaling import EDGES, Sigmoid, fit_sigmoid

GOLDEN = Sigmoid(before=0.2, asymptote=0.6, steepness=1.5, middle=100.0)
COMPUTE = np.linspace(25, 1000, 40)
WANTED = {10: 0.21226, 50: 0.30448, 100: 0.4, 200: 0.49552, 1000: 0.58774}


def test_golden_values() -> None:
    compute = np.array(list(WANTED), float)
    np.testing.assert_allclose(GOLDEN.at(compute), list(WANTED.values()), atol=6e-6)
    for name, value in (("steepness", 1.4), ("middle", 90.0), ("before", 0.21), ("asymptote", 0.61)):
        other = dataclasses.replace(GOLDEN, **{name: value}).at(compute)
        assert np.abs(other - list(WANTED.values())).max() > 1e-3, name


@pytest.mark.parametrize("scale", [1.0, 1e16], ids=["small", "FLOPs"])
@pytest.mark.parametrize("until", [0.15, 1.0])
def test_a_curve_without_noise_is_found(until: float, scale: float) -> None:
    """Also from its beginning alone, half as far again as its middle."""
    compute = np.linspace(10, 1000 * until, 30)
    fit = fit_sigmoid(scale * compute, GOLDEN.at(compute), before=0.2)
    assert fit.asymptote == pytest.approx(0.6, abs=1e-3) and fit.steepness == pytest.approx(1.5, rel=1e-2)
    assert fit.middle == pytest.approx(100 * scale, rel=1e-2)
    assert (fit.before, fit.points) == (0.2, 30) and not fit.flat
    assert fit.at(scale * 1000.0) == pytest.approx(0.58774, abs=1e-3)


def test_noise_of_a_thousand_prompts_leaves_the_asymptote_within_three_hundredths() -> None:
    """Binomial noise of mean@1; over the draws the mean is right, and the deviation is that of the noise."""
    found = []
    for seed in range(20):
        noisy = np.random.default_rng(seed).binomial(1000, GOLDEN.at(COMPUTE)) / 1000
        found.append(fit_sigmoid(COMPUTE, noisy, before=0.2))
    asymptotes = np.array([fit.asymptote for fit in found])
    assert np.abs(asymptotes - 0.6).max() < 0.03 and abs(asymptotes.mean() - 0.6) < 0.006
    assert np.mean([fit.steepness for fit in found]) == pytest.approx(1.5, abs=0.15)
    assert np.median([fit.middle for fit in found]) == pytest.approx(100, rel=0.05)
    assert np.mean([fit.deviation for fit in found]) == pytest.approx(0.015, abs=0.003)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_curve_ends_where_it_began(level: float) -> None:
    """The control: what teaches nothing has A = R0 within the noise of its points, and says so."""
    for seed in range(20):
        noise = 0.015 * np.random.default_rng(seed).standard_normal(20) if 0 < level < 1 else 0.0
        fit = fit_sigmoid(COMPUTE[:20], np.clip(level + noise, 0, 1) * np.ones(20), before=level)
        assert abs(fit.asymptote - level) < 0.03 and fit.flat


def test_what_rose_at_once_is_known_to_have() -> None:
    fit = fit_sigmoid(COMPUTE, np.full(40, 0.9), before=0.3)
    assert fit.asymptote == pytest.approx(0.9, abs=0.01) and not fit.flat


@pytest.mark.parametrize(
    ("compute", "accuracy", "words"),
    [
        (COMPUTE[:7], GOLDEN.at(COMPUTE[:7]), "7 points, and a sigmoid takes 8 or more"),
        (np.linspace(5, 60, 20), GOLDEN.at(np.linspace(5, 60, 20)), r"beyond the last point, C = 60"),
        (COMPUTE, 0.2 + 0.79 * (COMPUTE / 1000) ** 0.1, rf"A = 1\.050, .* at the edge of its grid \({EDGES[0]} to"),
        (COMPUTE, 3 * GOLDEN.at(COMPUTE), "between 0 and 1, found 0.2 to 1.7"),
        (COMPUTE - 25, GOLDEN.at(COMPUTE), "must be positive, found 0 to 975"),
    ],
    ids=["few", "unfinished", "edge", "no share", "no compute"],
)
def test_what_cannot_be_told_is_refused_with_its_numbers(compute: np.ndarray, accuracy: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_sigmoid(compute, accuracy, before=0.2)
