"""Estimators against all subsets, one by one, and against closed forms; intervals against what they promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infer.strategies import estimators
from infer.strategies.estimators import best_at_k, majority_at_k, over_examples, pass_at_k, wilson
from infer.strategies.votes import best_of, majority


def over_subsets(n: int, k: int, worth: Any) -> float:
    """The mean of `worth` over all subsets of k in all their orders."""
    return float(np.mean([worth(list(order)) for order in itertools.permutations(range(n), k)]))


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_share_of_all_choices_of_k(samples: int) -> None:
    for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        choices = list(itertools.combinations([True] * right + [False] * (samples - right), k))
        assert pass_at_k(samples, right, k) == pytest.approx(np.mean([any(choice) for choice in choices]))


@pytest.mark.parametrize("k", [0, 5, -1])
def test_pass_at_k_needs_so_many_samples(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        pass_at_k(4, 2, k)


def test_pass_at_k_is_best_at_k_of_what_is_right() -> None:
    for n, right in ((1, 0), (5, 2), (8, 8)):
        expected = [pass_at_k(n, right, k) for k in range(1, n + 1)]
        assert best_at_k([1.0] * right + [0.0] * (n - right)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_best_at_k_is_the_mean_over_all_orders_of_all_subsets(seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores, outcomes = draw.integers(0, 4, 6), draw.random(6)
    expected = [
        over_subsets(6, k, lambda rows: outcomes[rows[best_of(scores[rows], [0] * len(rows))[0]]]) for k in range(1, 7)
    ]
    assert best_at_k(scores, outcomes) == pytest.approx(expected)
    highest = [np.mean([max(row) for row in itertools.combinations(scores.tolist(), k)]) for k in range(1, 7)]
    assert best_at_k(scores) == pytest.approx(highest)


def test_the_best_of_k_uniform_numbers() -> None:
    n = 300
    # The expected maximum of k of the numbers 1 .. n.
    assert best_at_k(np.arange(1, n + 1)) == pytest.approx([k * (n + 1) / (k + 1) for k in range(1, n + 1)])


def by_votes(labels: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, rows: Sequence[int]) -> float:
    chosen = majority(labels[rows], [0] * len(rows), weights[rows])[0][0]
    return float(outcomes[rows[chosen]]) if chosen >= 0 else 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [3, 0, 0, -1, 3, 0], [-1, -1, -1], [0, 1, 2, 3, 4], [7]])
def test_the_majority_of_k_is_the_mean_over_all_orders_of_all_subsets(labels: list[int], weighted: bool) -> None:
    n, draw = len(labels), np.random.default_rng(len(labels))
    numbers, outcomes = np.array(labels), draw.random(n)
    weights = draw.integers(0, 3, n).astype(float) if weighted else np.ones(n)
    expected = [over_subsets(n, k, lambda rows: by_votes(numbers, outcomes, weights, rows)) for k in range(1, n + 1)]
    found = majority_at_k(numbers, outcomes, weights if weighted else None)
    assert found.values == pytest.approx(expected) and not found.errors.any()


def test_a_majority_of_two_answers_is_a_tail_of_the_hypergeometric_distribution() -> None:
    n, right, k = 200, 110, 31
    ways = [math.comb(right, m) * math.comb(n - right, k - m) for m in range(k + 1)]
    found = majority_at_k([0] * right + [1] * (n - right), [1.0] * right + [0.0] * (n - right))
    assert found.values[k - 1] == pytest.approx(sum(ways[(k + 1) // 2 :]) / math.comb(n, k))
    assert found.values[[0, -1]] == pytest.approx([right / n, 1.0])


def test_drawn_subsets_agree_with_all_of_them_within_their_errors() -> None:
    draw = np.random.default_rng(0)
    labels, outcomes = draw.integers(-1, 4, 20), draw.random(20)
    exact, drawn = majority_at_k(labels, outcomes), majority_at_k(labels, outcomes, np.full(20, 0.1), seed=3)
    assert drawn.errors[-1] == pytest.approx(0, abs=1e-12) and drawn.values[-1] == pytest.approx(exact.values[-1])
    assert (drawn.errors[:-1] > 0).all() and drawn.errors.max() < 0.02
    assert (np.abs(drawn.values - exact.values)[:-1] < 4 * drawn.errors[:-1]).all()
    assert (majority_at_k(labels, outcomes, np.full(20, 0.1), seed=3).values == drawn.values).all()


def test_more_samples_than_can_be_counted_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "MOST_EXACT", 12)
    assert majority_at_k([0, 1] * 7, [1.0, 0.0] * 7).errors[5] > 0
    assert not majority_at_k([0, 1] * 6, [1.0, 0.0] * 6).errors.any()


def test_wilson_by_hand_and_by_what_it_covers() -> None:
    z = 1.959963984540054
    assert wilson(0, 10)[1:] == pytest.approx((0, z**2 / (10 + z**2)))
    n, shares = 30, np.linspace(0.05, 0.95, 91)
    counts = np.arange(n + 1)
    ways = np.array([math.comb(n, k) for k in counts])
    chances = ways * shares[:, None] ** counts * (1 - shares[:, None]) ** (n - counts)
    _, low, high = wilson(counts, n)
    covered = (chances * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(1)
    assert 0.945 < covered.mean() < 0.96 and covered.min() > 0.9


def test_intervals_over_examples_cover_the_mean() -> None:
    """Each example has a chance of its own, and pass@2 of four samples is its estimate."""
    draw = np.random.default_rng(1)
    chances = draw.beta(1, 2, (60, 3000))
    right = draw.binomial(4, chances)
    table = np.array([pass_at_k(4, m, 2) for m in range(5)])
    truth = 1 - (2 / 3) * (3 / 4)  # of Beta(1, 2): E[(1 - p)^2]
    mean, low, high = over_examples(table[right])
    assert mean.mean() == pytest.approx(truth, abs=0.005)
    assert 0.935 < ((low <= truth) & (truth <= high)).mean() < 0.965
    _, low, high = over_examples(table[right], 0.5)
    assert 0.47 < ((low <= truth) & (truth <= high)).mean() < 0.53


def test_values_of_0_and_1_are_proportions() -> None:
    estimate = over_examples([[1, 0.5], [1, 0.0], [0, 1.0]])
    assert estimate.low[0] == wilson(2, 3).low and estimate.high[0] == wilson(2, 3).high
    spread = 1.959963984540054 * 0.5 / math.sqrt(3)
    assert (estimate.low[1], estimate.high[1]) == pytest.approx((0.5 - spread, 0.5 + spread))
    assert over_examples([1.0])[1:] == pytest.approx(wilson(1, 1)[1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(0, 0, 1), "between 1 and 0 samples"),
        (lambda: pass_at_k(4, 5, 1), "5 of 4 samples"),
        (lambda: best_at_k([]), "at least one sample"),
        (lambda: best_at_k([1.0, np.nan]), "sample 1 has the score nan"),
        (lambda: best_at_k([1.0, -np.inf]), "sample 1 has the outcome -inf"),
        (lambda: best_at_k([1.0, 2.0], [1.0]), "outcome for each of 2 samples"),
        (lambda: majority_at_k([], [1.0]), "label for each of at least one sample"),
        (lambda: majority_at_k([0, 1], [1.0, np.nan]), "sample 1 has the outcome nan"),
        (lambda: majority_at_k([0, 1], [1.0, 0.0], [1.0, -2.0]), "sample 1 has the weight -2.0"),
        (lambda: wilson(0, 0), "at least 1 trial"),
        (lambda: wilson(3, 2), "at least 1 trial"),
        (lambda: wilson(1, 2, 95), "confidence lies between 0 and 1"),
        (lambda: over_examples([]), "at least one example"),
        (lambda: over_examples([0.5]), "two or more"),
        (lambda: over_examples([1.0, np.nan]), "example 1 has the value NaN"),
    ],
)
def test_bad_input_is_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
