"""Alignment: published golden values, ties, the null of a maximum, features taken out of both sides, wrong input."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from analysis.alignment import (
    MEASURES,
    MODES,
    Measure,
    align,
    chance,
    cknna,
    clamp_outliers,
    linear_cka,
    mutual_knn,
    neighbours,
    permutation_test,
    residuals,
)

RANDOM = np.random.RandomState(0)
X, TURN = RANDOM.randn(64, 16), np.linalg.qr(RANDOM.randn(16, 16))[0]
NOISE = RANDOM.randn(64, 16)
Y = X + 0.5 * NOISE
N = 96
SWAPPED = [1, 0, *range(2, 64)]


def test_golden_values() -> None:
    """Of the published code, minyoungg/platonic-rep, on features without clamping."""
    assert mutual_knn(X, Y, 10) == pytest.approx(0.603125, abs=1e-5)
    assert mutual_knn(X, NOISE, 10) == pytest.approx(0.16875, abs=1e-5)
    assert mutual_knn(X, X @ TURN, 10) == pytest.approx(1.0, abs=1e-5)
    assert cknna(X, Y, 10) == pytest.approx(0.66317, abs=1e-5)
    assert linear_cka(X, Y) == pytest.approx(0.84826, abs=1e-5)


@pytest.mark.parametrize("kind", MEASURES)
def test_scores_neither_see_scale_nor_order_nor_rotation(kind: str) -> None:
    order = np.random.default_rng(0).permutation(64)
    measure = Measure(kind, 5, quantile=1)
    scores = align([X, X[:, :3]], [Y, 1e-4 * (Y @ TURN), X], measure).scores
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=1e-5)
    assert align(X[order], Y[order], measure).score == pytest.approx(scores[0, 0], abs=1e-5)
    assert scores[0, 2] == pytest.approx(1, abs=1e-4)  # the published denominator of CKNNA adds 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_outliers_are_clamped_as_published(mode: str) -> None:
    """One limit for all layers of an array, one for each of a list; the other side has its own."""
    stack = np.stack([X, 3 * Y], 1).astype(np.float32)  # [N, L, D]
    limits = {
        "exact": np.sort(np.abs(stack).ravel())[int(0.95 * stack.size)],
        "approximate": np.mean([np.quantile(np.abs(row), 0.95) for row in stack]),
    }
    assert abs(limits["exact"] - limits["approximate"]) > 0.05
    clamped = np.asarray(clamp_outliers(stack, 0.95, mode))
    np.testing.assert_allclose(clamped, np.clip(stack, -limits[mode], limits[mode]), rtol=1e-6)
    other = clamp_outliers(NOISE, 0.95, mode)
    together = [linear_cka(clamped[:, layer], other) for layer in (0, 1)]
    apart = [linear_cka(clamp_outliers(stack[:, layer], 0.95, mode), other) for layer in (0, 1)]
    assert abs(together[1] - apart[1]) > 1e-3
    measure = Measure("cka", mode=mode)
    np.testing.assert_allclose(align(stack, NOISE, measure).scores[:, 0], together, atol=1e-5)
    np.testing.assert_allclose(align([X, 3 * Y], NOISE, measure).scores[:, 0], apart, atol=1e-5)
    np.testing.assert_array_equal(clamp_outliers(stack, 1), stack)


def test_the_largest_of_all_pairs() -> None:
    found = align([NOISE, X], [X[::-1], NOISE[::-1], Y])
    assert found.scores.shape == (2, 3) and found.layers == (1, 2)
    assert found.score == found.scores.max() == found.scores[1, 2]


def test_equally_near_examples_share_the_places_left() -> None:
    cosines = np.array([[1, 0.9, 0.5, 0.5, 0.5], [0.1, 1, 0.2, 0.3, 0.4]])
    weights = jax.jit(neighbours, static_argnums=1)(np.pad(cosines, ((0, 3), (0, 0))), 2)
    np.testing.assert_allclose(weights[:2], [[0, 1, 1 / 3, 1 / 3, 1 / 3], [0, 0, 0, 1, 1]], atol=1e-6)
    # Of unrelated sides in which every row is there four times, each score is chance: order must not align them.
    rng = np.random.default_rng(0)
    repeated = [np.repeat(rng.normal(size=(N // 4, 8)), 4, 0)[rng.permutation(N)] for _ in range(2)]
    test = permutation_test(*repeated, jax.random.key(0), Measure(k=2), permutations=50)
    assert test.alignment.score == pytest.approx(chance(N, 2), abs=0.02)
    assert test.mean == pytest.approx(chance(N, 2), rel=0.1)


def test_chance_and_the_null_of_the_maximum() -> None:
    """One pair scores k / (N - 1) by chance, the best of many more: its null says so, and a real pair stands out."""
    rng = np.random.default_rng(0)
    one, many = rng.normal(size=(N, 12)), [rng.normal(size=(N, 12)) for _ in range(8)]
    key, measure = jax.random.key(0), Measure(k=5)
    pair = permutation_test(one, many[0], key, measure, permutations=200)
    assert pair.mean == pytest.approx(chance(N, 5), rel=0.05) and pair.maxima.shape == (200,)
    best = permutation_test(one, many, key, measure, permutations=200)
    assert best.mean > 1.25 * chance(N, 5) and best.p > 0.05
    assert best.alignment.score == align(one, many, measure).score > pair.alignment.score
    related = permutation_test(one, [*many, one + rng.normal(size=(N, 12))], key, measure, permutations=200)
    assert related.p == pytest.approx(1 / 201) and related.alignment.layers == (0, 8)


def test_shuffled_scores_are_those_of_shuffled_examples() -> None:
    key = jax.random.key(3)
    for kind in MEASURES:
        measure = Measure(kind, 5)
        test = permutation_test(X, [Y, NOISE], key, measure, permutations=3)
        orders = [np.asarray(jax.random.permutation(k, 64)) for k in jax.random.split(key, 3)]
        want = [align(X, [Y[order], NOISE[order]], measure).score for order in orders]
        np.testing.assert_allclose(test.maxima, want, atol=1e-5)


def test_what_both_sides_share_is_taken_out() -> None:
    """Two sides related by the question alone: aligned as they are, not beyond it."""
    rng = np.random.default_rng(0)
    question = rng.normal(size=(N, 6))
    a, b = (question @ rng.normal(size=(6, 20)) + 0.3 * rng.normal(size=(N, 20)) for _ in range(2))
    test = functools.partial(permutation_test, key=jax.random.key(0), measure=Measure(k=5), permutations=100)
    assert test(a, b).p < 0.02 and test(a, b).alignment.score > 0.3
    assert test(a, b, covariates=question).p > 0.05
    left = residuals(a, question)
    np.testing.assert_allclose(left.T @ np.c_[np.ones(N), question], 0, atol=1e-3)
    fitted = np.linalg.lstsq(np.c_[np.ones(N), question], a, rcond=None)[0]
    np.testing.assert_allclose(left, a - np.c_[np.ones(N), question] @ fitted, atol=1e-5)
    same = rng.normal(size=(N, 20))
    assert test(a + same, b + same, covariates=question).p < 0.02


def test_residuals_of_unrelated_sides_share_what_is_missing() -> None:
    """A null that shuffles residuals takes that for alignment; one that takes the features out again does not."""
    rng = np.random.default_rng(0)
    a, b, many = (rng.normal(size=(N, size)) for size in (16, 16, N // 2))
    test = functools.partial(permutation_test, key=jax.random.key(0), measure=Measure(k=5), permutations=100)
    naive, fair = test(residuals(a, many), residuals(b, many)), test(a, b, covariates=many)
    assert naive.p < 0.05 < fair.p
    assert naive.mean == pytest.approx(chance(N, 5), rel=0.1) and fair.mean > 1.3 * naive.mean


def test_wrong_input() -> None:
    hole = X.copy()
    hole[[5, 9], 0] = np.nan, np.inf
    wrong: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("k = 64 neighbours need more than 64 examples, found 64", X, Y, {"measure": Measure(k=64)}),
        ("a has 64 examples and b 63", X, Y[1:], {}),
        ("b, layer 1: 2 values .* in 2 of 64 examples, the first in example 5", X, [Y, hole], {}),
        ("a, layer 0: the 3 features are the same in all 64 examples", np.ones((64, 3)), Y, {}),
        (r"found an array of \(64,\)", X[:, 0], Y, {}),
        (r"the layers of a hold \[64, 63\] examples", [X, X[1:]], Y, {}),
        (
            "2 of 64 examples are others .* first in row 0: 0 and 1",
            X,
            Y,
            {"ids": (range(64), SWAPPED)},
        ),
        ("64 examples have 64 ids on side a and 3 on side b", X, Y, {"ids": (range(64), range(3))}),
        (r"covariates must be \[N, Q\] with the 64 examples", X, Y, {"covariates": X[:, 0]}),
        ("covariates: 2 values are NaN", X, Y, {"covariates": hole}),
        ("covariates span 64 of 64 dimensions", X, Y, {"covariates": np.eye(64)}),
        ("b, layer 0: the covariates explain all of it", NOISE, X @ TURN, {"covariates": X}),
        ("cknna needs at least 4 examples, found 3", X[:3], Y[:3], {"measure": Measure("cknna", 2)}),
    ]
    for told, a, b, more in wrong:
        with pytest.raises(ValueError, match=told):
            align(a, b, **more)
        with pytest.raises(ValueError, match=told):
            permutation_test(a, b, jax.random.key(0), **more)
    with pytest.raises(ValueError, match="at least one permutation is needed, found 0"):
        permutation_test(X, Y, jax.random.key(0), permutations=0)
    for more, told in (
        ({"kind": "mutual_nn"}, "Did you mean 'mutual_knn'"),
        ({"mode": "approx"}, "Did you mean 'approximate'"),
        ({"quantile": 0.0}, "found 0.0"),
        ({"k": 0}, "at least 1, found 0"),
        ({"kind": "cknna", "k": 1}, "at least 2, found 1"),
    ):
        with pytest.raises(ValueError, match=told):
            Measure(**more)


def test_the_same_examples_in_the_same_order() -> None:
    names = [f"problem {i}" for i in range(64)]
    assert align(X, Y, ids=(names, list(names))).score == align(X, Y).score
