"""Probes: golden penalties and scores, solvers against optimality conditions and NumPy, planted features, leaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.probes import (
    Features,
    Plan,
    Probe,
    accuracy,
    collect,
    cross_validate,
    group_lasso,
    head2toe,
    largest_coefficient,
    last_layer_probe,
    layer_shares,
    linear_probe,
    normalised,
    pool,
    predict,
    ranking_auc,
    relevance,
    segments_for,
    select,
    validation,
)
from analysis.probes.fitting import cross_entropy, fit
from analysis.probes.selection import kept_count
from analysis.probes.validation import folds_of

WEIGHTS = jnp.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
TRAIN, TEST = slice(0, 300), slice(300, 600)


def planted(seed: int = 0, n: int = 600, strength: float = 1.0) -> tuple[Features, np.ndarray, np.ndarray]:
    """Four layers of 50 features, of which ten in all tell two classes apart; labels; which features those are."""
    rng = np.random.default_rng(seed)
    labels, table = rng.integers(0, 2, n), rng.normal(size=(n, 200))
    informative = np.zeros(200, bool)
    informative[rng.permutation(200)[:10]] = True
    table[:, informative] += strength * (2 * labels[:, None] - 1) * rng.choice((-1, 1), 10)
    return collect({f"layer {i}": part for i, part in enumerate(np.split(table, 4, 1))}), labels, informative


def test_golden_penalty_and_scores() -> None:
    assert float(group_lasso(WEIGHTS, 0.01)) == pytest.approx(0.08, abs=1e-7)
    np.testing.assert_array_equal(relevance(WEIGHTS), [25, 0, 1, 4])
    slope = jax.grad(lambda w: group_lasso(w, 0.01))(WEIGHTS)
    np.testing.assert_allclose(slope, [[0.006, 0.008], [0, 0], [0.01, 0], [0, 0.01]], rtol=1e-5)


def test_pooling() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    mask = np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1]])
    hidden = np.where(mask[..., None] > 0, x, np.inf)
    np.testing.assert_array_equal(pool(x), x.mean(1))
    np.testing.assert_array_equal(pool(hidden, mask), [x[0, :5].mean(0), x[1, [1, 2, 4, 5]].mean(0)])
    np.testing.assert_array_equal(pool(hidden, mask, "last"), [x[0, 4], x[1, 5]])
    halves = [[*x[0, :3].mean(0), *x[0, 3:5].mean(0)], [*x[1, 1:3].mean(0), *x[1, 4:].mean(0)]]
    np.testing.assert_array_equal(pool(hidden, mask, 2), halves)
    np.testing.assert_array_equal(pool(x, how=3), x.reshape(2, 3, 2, 2).mean(2).reshape(2, 6))
    assert (segments_for(512, 64), segments_for(512, 768)) == (8, 1)


def test_each_layer_of_an_example_has_length_one() -> None:
    features = collect({"a": np.array([[3.0, 4.0], [0.0, 0.0]]), "b": np.array([[[1e-30], [3e-30]], [[0.0], [-4e30]]])})
    np.testing.assert_array_equal(features.layer_of, [0, 0, 1])
    units = normalised(features.values, features.layer_of)
    np.testing.assert_allclose(units, [[0.6, 0.8, 1], [0, 0, -1]], rtol=1e-6)


def test_the_proximal_solver_ends_where_nothing_improves() -> None:
    """Karush-Kuhn-Tucker: the gradient of a feature in use balances the penalty, that of the others is within it."""
    features, labels, _ = planted(strength=0.5)
    table = normalised(features.values, features.layer_of)
    most = largest_coefficient(table, labels, 2)
    plan, coefficient = Plan(steps=1000), 0.1 * most
    head = fit(table, labels, 2, plan, coefficient)
    slope, bias = jax.grad(lambda v: cross_entropy(v, table, labels).mean())((head.weights, head.bias))
    used = head.weights.any(1)
    assert 10 <= used.sum() < 100
    unit = head.weights[used] / np.linalg.norm(head.weights[used], axis=1, keepdims=True)
    np.testing.assert_allclose(slope[used], -coefficient * unit, atol=2e-5)
    assert np.linalg.norm(slope[~used], axis=1).max() <= coefficient + 1e-6
    np.testing.assert_allclose(bias, 0, atol=2e-5)
    assert not fit(table, labels, 2, plan, 1.001 * most).weights.any()
    assert fit(table, labels, 2, plan, 0.98 * most).weights.any(1).sum() in (1, 2)


def test_adam_as_published() -> None:
    """Five examples in batches of two: in order, again and again, the last one counting by its share; cosine decay."""
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(5, 3)), np.array([0, 1, 1, 0, 1])
    plan = Plan(solver="adam", steps=7, lr=0.1, batch=2)
    head = fit(table, labels, 2, plan, 0.05)
    w = np.zeros((4, 2))  # the bias is the last row
    m, v, full = np.zeros_like(w), np.zeros_like(w), np.c_[table, np.ones(5)]
    for i in range(7):
        rows = [[0, 1], [2, 3], [4]][i % 3]
        p = np.exp(full[rows] @ w)
        p /= p.sum(1, keepdims=True)
        slope = full[rows].T @ (p - np.eye(2)[labels[rows]]) / 2
        length = np.linalg.norm(w[:3], axis=1, keepdims=True)
        slope[:3] += 0.05 * np.divide(w[:3], length, where=length > 0, out=np.zeros((3, 2))) * len(rows) / 2
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * i / 7))
        w = w - rate * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-7)
    np.testing.assert_allclose(np.r_[head.weights, head.bias[None]], w, atol=2e-5)


@pytest.mark.parametrize("solver", ["proximal", "adam"])
def test_planted_features_are_found(solver: str) -> None:
    features, labels, informative = planted()
    table = normalised(features.values[TRAIN], features.layer_of)
    plan = Plan(0.05, 0.1 * largest_coefficient(table, labels[TRAIN], 2), solver, steps=300)
    probes = {
        which: head2toe(features.rows(TRAIN), labels[TRAIN], plan, which=which) for which in ("top", "random", "bottom")
    }
    top = probes["top"]
    assert top.scores is not None and ranking_auc(top.scores, informative) > 0.99
    assert (top.scores == 0).any() == (solver == "proximal")
    assert set(np.flatnonzero(informative)) == set(top.chosen)
    reached = {which: accuracy(probe, features.rows(TEST), labels[TEST]) for which, probe in probes.items()}
    assert reached["top"] > 0.95 > reached["random"] > 0.65 > reached["bottom"]
    own = np.bincount(features.layer_of[informative], minlength=4)
    assert [share.kept for share in top.layer_shares] == own.tolist()
    assert [share.share for share in top.layer_shares] == pytest.approx((own / 10).tolist())
    last = last_layer_probe(features.rows(TRAIN), labels[TRAIN], plan)
    assert 0.6 < accuracy(last, features.rows(TEST), labels[TEST]) < reached["top"] - 0.02
    np.testing.assert_array_equal(last.chosen, range(150, 200))


def test_shuffled_labels_are_not_decodable() -> None:
    features, labels, _ = planted(n=1000)
    wrong = np.random.default_rng(1).permutation(labels)
    plan = Plan(share=0.05, coefficient=1e-3, steps=200)
    probe = head2toe(features.rows(TRAIN), wrong[TRAIN], plan)
    assert accuracy(probe, features.rows(slice(300, None)), wrong[300:]) == pytest.approx(0.5, abs=0.07)


def test_a_probe_is_a_head_on_the_chosen_features() -> None:
    """Chosen before or not: the same head; the columns that pad it change nothing."""
    features, labels, _ = planted(n=100)
    plan = Plan(share=0.2, coefficient=0.02, steps=100)
    probe = head2toe(features, labels, plan)
    assert 2 < len(probe.chosen) < 40
    parts = [probe.chosen[features.layer_of[probe.chosen] == i] for i in range(4)]
    alone = collect({str(i): features.values[:, part] for i, part in enumerate(parts) if len(part)})
    head = linear_probe(alone, labels, plan).head
    np.testing.assert_allclose(head.weights, probe.head.weights, atol=1e-4)
    np.testing.assert_array_equal(predict(probe, features), predict(linear_probe(alone, labels, plan), alone))


def test_folds_neither_rank_nor_fit_with_what_they_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    for fitted, measured in folds_of(23, 5, seed=3):
        assert (len(fitted), len(measured)) == (19, 4) and not set(fitted) & set(measured)
    assert len({row for _, measured in folds_of(23, 5, seed=3) for row in measured}) == 20
    seen: list[set[float]] = []
    fit_one, measure_one = validation.head2toe, validation.accuracy

    def fit_spy(features: Features, *rest: Any, **more: Any) -> Probe:
        seen.append(set(features.values[:, 0].tolist()))
        return fit_one(features, *rest, **more)

    def measure_spy(probe: Probe, features: Features, labels: np.ndarray) -> float:
        assert not seen[-1] & set(features.values[:, 0].tolist())
        return measure_one(probe, features, labels)

    monkeypatch.setattr(validation, "head2toe", fit_spy)
    monkeypatch.setattr(validation, "accuracy", measure_spy)
    features, labels, _ = planted(n=600)
    train, plans = features.rows(TRAIN), [Plan(0.05, c, steps=50) for c in (0.01, 1e-4)]
    choice = cross_validate(train, labels[TRAIN], plans)
    assert len(seen) == 10 and set().union(*seen) == set(train.values[:, 0].tolist())
    assert choice.plan == plans[0] and choice.accuracies.shape == (2, 5) and choice.plans == tuple(plans)


def test_selection_inside_the_folds_is_not_fooled_by_noise() -> None:
    """Features chosen from all examples predict even labels that mean nothing; chosen in each fold they do not."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 40))
    features = collect({"noise": rng.normal(size=(80, 1000))})
    plan = Plan(share=0.02, coefficient=1e-3, steps=60)
    inside = cross_validate(features, labels, [plan]).accuracies.mean()
    chosen = head2toe(features, labels, plan).chosen
    leaking = collect({"noise": features.values[:, chosen]})
    outside = cross_validate(leaking, labels, [dataclasses.replace(plan, share=1.0)]).accuracies.mean()
    assert inside < 0.65 and outside > 0.8


def test_a_ranking_by_hand() -> None:
    assert ranking_auc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([1, 0, 1, 0])) == 1.0
    assert ranking_auc(np.array([1.0, 1.0, 2.0, 0.0]), np.array([1, 0, 0, 0])) == pytest.approx(1.5 / 3)
    assert ranking_auc(np.zeros(5), np.array([1, 0, 0, 1, 0])) == 0.5


def test_selection_by_hand() -> None:
    scores = np.array([0.0, 4.0, 0.0, 9.0, 1.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(select(scores, 0.25), [1, 3])
    np.testing.assert_array_equal(select(scores, 0.9), [1, 3, 4])  # what scores 0 is not taken
    assert kept_count(scores, 0.9) == 3 == len(select(scores, 0.9, "random")) == len(select(scores, 0.9, "bottom"))
    assert not scores[select(scores, 0.5, "bottom")].any()
    drawn = {tuple(select(scores, 0.25, which, seed)) for which in ("random", "bottom") for seed in range(8)}
    assert len(drawn) > 4, "equal scores must not be taken in their order"
    features = Features(np.zeros((1, 8)), ("a", "b"), np.repeat([0, 1], 4))
    assert [(s.layer, s.kept, s.features, s.share) for s in layer_shares(np.array([1, 3, 4]), features)] == [
        ("a", 2, 4, pytest.approx(2 / 3)),
        ("b", 1, 4, pytest.approx(1 / 3)),
    ]


def with_value(value: float) -> Features:
    features, _, _ = planted(n=12)
    values = features.values.copy()
    values[7, 60] = value
    return dataclasses.replace(features, values=values)


def test_wrong_examples() -> None:
    features, labels, _ = planted(n=12)
    labels[:2] = 0, 1
    plan = Plan(steps=2)
    with pytest.raises(ValueError, match="12 examples are fewer than 30 classes"):
        linear_probe(features, labels, classes=30)
    with pytest.raises(ValueError, match="12 examples are fewer than 41 classes"):
        head2toe(features, np.r_[labels[:11], 40], plan)
    with pytest.raises(ValueError, match=r"1 of 2400 features .* first in example 7 of layer 'layer 1'"):
        last_layer_probe(with_value(np.nan), labels)
    constant = collect({"a": features.values, "last": np.ones((12, 3))})
    with pytest.raises(ValueError, match="layer 'last': all 3 features are the same in all 12 examples"):
        cross_validate(constant, labels, [plan])
    with pytest.raises(ValueError, match=r"for 12 examples, found shape \(11,\)"):
        head2toe(features, labels[:11], plan)
    with pytest.raises(ValueError, match="found float64"):
        head2toe(features, labels * 0.5, plan)
    with pytest.raises(ValueError, match="label 1 is none of 1 classes"):
        head2toe(features, labels, plan, classes=1)
    with pytest.raises(ValueError, match="all 12 labels are the same"):
        head2toe(features, np.zeros(12, int), plan)
    with pytest.raises(ValueError, match=r"folds must lie in 2 .. 12"):
        cross_validate(features, labels, [plan], folds=13)
    with pytest.raises(ValueError, match="no plans"):
        cross_validate(features, labels, [])
    with pytest.raises(ValueError, match=r"switches off all 200 features: choose less than 0\."):
        head2toe(features, labels, Plan(coefficient=10.0, steps=20))
    with pytest.raises(ValueError, match=r"a share of 0.001 keeps none of 200 features: at least 0.005"):
        head2toe(features, labels, Plan(share=0.001, steps=20))
    probe = linear_probe(features, labels, plan)
    with pytest.raises(ValueError, match=r"fitted to 200 features of layer 0, .* these are 203 of a, last"):
        predict(probe, constant)
    with pytest.raises(ValueError, match="Did you mean 'layer 3'"):
        linear_probe(features, labels, layers=["layer3"])
    with pytest.raises(ValueError, match="found shape"):
        accuracy(probe, features, labels[:3])


def test_wrong_arguments() -> None:
    x = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"\[N, S, D\], found shape \(2, 3\)"):
        pool(x[..., 0])
    with pytest.raises(ValueError, match=r"a mask of \(2, 2\)"):
        pool(x, np.ones((2, 2)))
    with pytest.raises(ValueError, match="Did you mean 'last'"):
        pool(x, how="lst")
    with pytest.raises(ValueError, match="example 1 has 2 valid tokens for 3 segments"):
        pool(x, np.array([[1, 1, 1], [1, 0, 1]]), 3)
    with pytest.raises(ValueError, match="example 0 has 0 valid tokens"):
        pool(x, np.zeros((2, 3)), "last")
    with pytest.raises(ValueError, match="at least one segment"):
        pool(x, how=0)
    with pytest.raises(ValueError, match=r"\{'a': 2, 'b': 3}"):
        collect({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})
    with pytest.raises(ValueError, match="layer 'a' must be"):
        collect({"a": np.zeros(2)})
    with pytest.raises(ValueError, match="no layers"):
        collect({})
    for wrong, told in (
        ({"solver": "adams"}, "Did you mean 'adam'"),
        ({"share": 0.0}, "found 0.0"),
        ({"coefficient": -1.0}, "found -1.0"),
        ({"steps": 0}, "steps 0"),
    ):
        with pytest.raises(ValueError, match=told):
            Plan(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Did you mean 'top'"):
        select(np.ones(3), 1.0, "tops")
    with pytest.raises(ValueError, match="1 not so"):
        select(np.array([1, np.nan]), 1.0)
    with pytest.raises(ValueError, match="0 of 3 items"):
        ranking_auc(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="must both be"):
        ranking_auc(np.ones(3), np.zeros(2))
