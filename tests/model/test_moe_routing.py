"""Routing and balancing: published gates, their mutants, and the properties that no reference code has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.moe import metrics, update_state
from model.routing import (
    Routes,
    balance_loss,
    choose_experts,
    choose_tokens,
    chosen,
    entropy,
    limit_groups,
    move_bias,
    router_logits,
    router_scores,
    shares,
    z_loss,
)
from settings.model_parts import MoEConfig
from tests.model.common import tiny

CASES = range(6)


def densify(routes: Routes, n_experts: int) -> np.ndarray:
    """[N, k] experts and gates -> [N, E]: the order of a top-k means nothing."""
    picked = np.asarray(routes.experts)[..., None] == np.arange(n_experts)
    return (picked * np.asarray(routes.gates)[..., None]).sum(-2)


def golden_case(shared: Path, case: int) -> tuple[dict[str, np.ndarray], MoEConfig]:
    with np.load(shared / "golden" / "router.npz") as file:
        arrays = {name: file[f"{case}:{name}"] for name in ("x", "W", "b", "gates", "hp")}
    n_experts, n_groups, top_groups, top_k, normalize, scale = arrays["hp"]
    sizes = dict(n_experts=int(n_experts), n_groups=int(n_groups), top_groups=int(top_groups), top_k=int(top_k))
    return arrays, MoEConfig(**sizes, normalize=bool(normalize), scale=float(scale), score="sigmoid", balance="bias")


def gates_of(arrays: dict[str, np.ndarray], config: MoEConfig, bias: Any = None) -> np.ndarray:
    scores = router_scores(router_logits(jnp.asarray(arrays["x"]), jnp.asarray(arrays["W"].T)), config.score)
    bias = arrays["b"] if bias is None else bias
    routes = choose_tokens(scores, jnp.asarray(bias), jnp.ones(len(arrays["x"]), bool), config)
    return densify(routes, config.n_experts)


@pytest.mark.parametrize("case", CASES)
def test_gates_equal_the_published_router(shared: Path, case: int) -> None:
    arrays, config = golden_case(shared, case)
    gates = gates_of(arrays, config)
    np.testing.assert_array_equal(gates > 0, arrays["gates"] > 0)
    np.testing.assert_allclose(gates, arrays["gates"], atol=1e-6 * config.scale, rtol=0)
    if config.normalize:
        np.testing.assert_allclose(gates.sum(-1), config.scale, rtol=1e-5)


@pytest.mark.parametrize(
    "case, change",
    [
        (0, {"group_score": "max"}),
        (0, {"n_groups": 1, "top_groups": 1}),
        (0, {"normalize": False}),
        (4, {"normalize": True}),
        (0, {"scale": 1.0}),
        (0, {"score": "softmax"}),
        (3, {"top_k": 3}),
    ],
    ids=lambda value: str(value),
)
def test_another_setting_gives_other_gates(shared: Path, case: int, change: dict[str, Any]) -> None:
    arrays, config = golden_case(shared, case)
    wrong = gates_of(arrays, dataclasses.replace(config, **change))
    assert (np.abs(wrong - arrays["gates"]).max(-1) > 1e-3).mean() > 0.1


def test_the_bias_selects_and_does_not_weigh(shared: Path) -> None:
    arrays, config = golden_case(shared, 0)
    assert np.abs(gates_of(arrays, config, np.zeros_like(arrays["b"])) - arrays["gates"]).max() > 0.1
    scores = router_scores(router_logits(jnp.asarray(arrays["x"]), jnp.asarray(arrays["W"].T)), "sigmoid")
    weighed = np.where(arrays["gates"] > 0, scores + arrays["b"], 0)
    weighed *= config.scale / weighed.sum(-1, keepdims=True)
    assert np.abs(gates_of(arrays, config) - weighed).max() > 0.1


def test_groups_are_masked_with_minus_infinity(shared: Path) -> None:
    """Case 1: scores + bias are negative, so that 0 in place of -inf would let the other groups in."""
    arrays, config = golden_case(shared, 1)
    scores = router_scores(router_logits(jnp.asarray(arrays["x"]), jnp.asarray(arrays["W"].T)), "sigmoid")
    limited = limit_groups(scores + arrays["b"], config)
    kept = np.isfinite(limited).reshape(len(scores), config.n_groups, -1)
    np.testing.assert_array_equal(kept.any(-1).sum(-1), config.top_groups)
    np.testing.assert_array_equal(kept.any(-1), kept.all(-1))
    with_zero = jax.lax.top_k(jnp.where(jnp.isfinite(limited), limited, 0.0), config.top_k)[1]
    changed = np.asarray(chosen(with_zero, config.n_experts)) != (arrays["gates"] > 0)
    assert changed.any(-1).sum() >= 190


@pytest.mark.parametrize("score, normalize", [("softmax", True), ("softmax", False), ("sigmoid", True)])
def test_router_is_fp32_under_bf16(score: str, normalize: bool) -> None:
    rng = np.random.default_rng(0)
    x, router = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((64, 32), (32, 8)))
    config = MoEConfig(score=score, normalize=normalize)
    low = choose_tokens(router_scores(router_logits(x, router), score), None, jnp.ones(64, bool), config)
    assert low.gates.dtype == jnp.float32
    full = router_scores(router_logits(x.astype(jnp.float32), router.astype(jnp.float32)), score)
    want = choose_tokens(full, None, jnp.ones(64, bool), config)
    np.testing.assert_array_equal(low.experts, want.experts)
    np.testing.assert_array_equal(low.gates, want.gates)


def test_padding_goes_nowhere() -> None:
    scores = router_scores(jnp.asarray(np.random.default_rng(0).standard_normal((6, 8))), "softmax")
    valid = jnp.array([1, 0, 1, 1, 0, 1], bool)
    routes = choose_tokens(scores, None, valid, MoEConfig())
    np.testing.assert_array_equal(routes.experts[~valid], 8)
    np.testing.assert_array_equal(routes.gates[~valid], 0)
    assert (np.asarray(routes.experts)[valid] < 8).all()


# --- expert choice


@pytest.mark.parametrize("normalize", [True, False])
def test_experts_choose_their_best_tokens(normalize: bool) -> None:
    config = MoEConfig(n_experts=4, top_k=2, router="expert_choice", normalize=normalize, scale=1.5)
    scores = np.asarray(router_scores(jnp.asarray(np.random.default_rng(1).standard_normal((12, 4))), "softmax"))
    valid = np.array([True] * 10 + [False] * 2)
    tokens, routes = choose_experts(jnp.asarray(scores), jnp.asarray(valid), config)
    gates = np.zeros((12, 5))
    np.add.at(gates, (tokens, routes.experts[:, 0]), routes.gates[:, 0])
    want = np.zeros((12, 4))
    for e in range(4):
        best = np.argsort(-scores[:10, e])[: 10 * 2 // 4]
        want[best, e] = scores[best, e]
    if normalize:
        want /= want.sum(-1, keepdims=True) + 1e-20
    np.testing.assert_allclose(gates[:, :4], 1.5 * want, atol=1e-6)
    assert not gates[:, 4].any()


# --- balance


def uneven(shape: tuple[int, ...] = (3, 16, 8), seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shares, what a top-2 picks of them, and validity with padding."""
    scores = jnp.asarray(np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), shape[:-1]), jnp.float32)
    valid = jnp.asarray(np.random.default_rng(seed).random(shape[:-1]) < 0.8)
    picked = chosen(jax.lax.top_k(scores, 2)[1], shape[-1]) * valid[..., None]
    return scores, picked, valid


@pytest.mark.parametrize("per", ["sequence", "batch"])
def test_balance_loss_is_one_when_even(per: str) -> None:
    even = jnp.full((2, 8, 4), 1 / 4)
    routes = jnp.stack([jnp.arange(8) % 4, (jnp.arange(8) + 1) % 4], -1)
    picked = jnp.broadcast_to(chosen(routes, 4), even.shape)
    assert float(balance_loss(even, picked, jnp.ones((2, 8), bool), 2, per)) == pytest.approx(1.0, abs=1e-6)
    # One expert for all is as uneven as it gets.
    single = jnp.zeros((2, 8, 4)).at[..., 0].set(1.0)
    assert float(balance_loss(single, single, jnp.ones((2, 8), bool), 1, per)) == pytest.approx(4.0, abs=1e-6)


def test_balance_per_sequence_is_the_mean_of_its_rows() -> None:
    scores, picked, valid = uneven()
    valid, picked = valid.at[1].set(False), picked.at[1].set(0.0)
    rows = [balance_loss(scores[i : i + 1], picked[i : i + 1], valid[i : i + 1], 2, "batch") for i in (0, 2)]
    got = balance_loss(scores, picked, valid, 2, "sequence")
    assert float(got) == pytest.approx(float(sum(rows)) / 2, rel=1e-6)
    assert abs(float(got) - float(balance_loss(scores, picked, valid, 2, "batch"))) > 1e-3


def test_balance_loss_ignores_padding() -> None:
    scores, picked, valid = uneven((1, 16, 8))
    valid, picked = valid.at[:, 9:].set(False), picked.at[:, 9:].set(0.0)
    short = balance_loss(scores[:, :9], picked[:, :9], valid[:, :9], 2, "sequence")
    assert float(balance_loss(scores, picked, valid, 2, "sequence")) == pytest.approx(float(short), rel=1e-6)


def test_batch_balance_equals_transformers(parity_seed: int) -> None:
    """`load_balancing_loss_func` of Mixtral and Qwen-MoE is top_k times ours, for one layer."""
    torch = pytest.importorskip("torch")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = np.random.default_rng(parity_seed).standard_normal((2, 24, 8)).astype(np.float32) * 2
    for top_k in (1, 2, 3):
        want = mixtral.load_balancing_loss_func((torch.tensor(logits.reshape(-1, 8)),), 8, top_k)
        scores = router_scores(jnp.asarray(logits), "softmax")
        routes = choose_tokens(scores, None, jnp.ones((2, 24), bool), MoEConfig(top_k=top_k))
        got = balance_loss(scores, chosen(routes.experts, 8), jnp.ones((2, 24), bool), top_k, "batch")
        assert top_k * float(got) == pytest.approx(float(want), rel=1e-5)


def test_balance_loss_pushes_scores_away_from_a_busy_expert() -> None:
    scores, picked, valid = uneven()
    picked = picked.at[..., 0].set(1.0) * valid[..., None]
    gradient = jax.grad(lambda s: balance_loss(s, picked, valid, 2, "batch"))(scores)
    assert (np.asarray(gradient)[..., 0][valid] >= np.asarray(gradient).max(-1)[valid]).all()


def test_z_loss_is_the_mean_square_of_logsumexp() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    valid = np.ones((2, 5), bool)
    valid[1, 2:] = False
    want = np.mean(np.log(np.exp(logits.astype(np.float64)).sum(-1))[valid] ** 2)
    assert float(z_loss(jnp.asarray(logits), jnp.asarray(valid))) == pytest.approx(want, rel=1e-5)


def test_sigmoid_shares_sum_to_one() -> None:
    scores = router_scores(jnp.asarray(np.random.default_rng(0).standard_normal((5, 8))), "sigmoid")
    np.testing.assert_allclose(shares(scores, "sigmoid").sum(-1), 1.0, rtol=1e-6)
    assert float(entropy(jnp.full(8, 1 / 8))) == pytest.approx(np.log(8), rel=1e-6)
    assert float(entropy(jnp.eye(8)[0])) == pytest.approx(0.0, abs=1e-6)


def test_bias_moves_by_the_rate_towards_balance() -> None:
    bias, load = jnp.zeros(4), jnp.array([10.0, 2.0, 4.0, 0.0])
    moved = move_bias(bias, load, 1e-2)
    np.testing.assert_allclose(moved, [-1e-2, 1e-2, 0.0, 1e-2])
    assert float(jnp.abs(moved - bias).sum()) == pytest.approx(1e-2 * 3)
    np.testing.assert_array_equal(move_bias(bias, jnp.full(4, 7.0), 1e-2), bias)
    np.testing.assert_array_equal(move_bias(bias, load, 0.0), bias)


def test_no_gradient_reaches_the_bias() -> None:
    scores = router_scores(jnp.asarray(np.random.default_rng(0).standard_normal((6, 8))), "sigmoid")
    config = MoEConfig(score="sigmoid", balance="bias", n_groups=4, top_groups=2)

    def total(scores: jax.Array, bias: jax.Array) -> jax.Array:
        routes = choose_tokens(scores, bias, jnp.ones(6, bool), config)
        return (routes.gates * jnp.arange(1.0, 3.0)).sum()

    to_scores, to_bias = jax.grad(total, (0, 1))(scores, jnp.full(8, 0.1))
    assert np.abs(to_scores).max() > 0
    np.testing.assert_array_equal(to_bias, 0.0)


def test_repeated_updates_even_out_the_load() -> None:
    """One expert starts far ahead; the rule brings its load to the others'."""
    config = tiny(ffn="moe", moe=dict(score="sigmoid", balance="bias", bias_rate=0.02)).config
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((512, 8))).at[:, 3].add(2.0)
    scores, valid = router_scores(logits, "sigmoid"), jnp.ones(512, bool)
    state, worst = {"bias": jnp.zeros(8)}, []
    for _ in range(60):
        load = chosen(choose_tokens(scores, state["bias"], valid, config.moe).experts, 8).sum(0)
        worst.append(float(load[3] / load.mean() - 1))
        state = update_state(state, {"load": load}, config)
    assert worst[0] > 1.5 and worst[-1] < 0.15
    assert float(state["bias"][3]) == min(np.asarray(state["bias"]))
    assert update_state({}, {"load": load}, config) == {}


def test_metrics_of_known_loads() -> None:
    config = tiny(ffn="moe", moe=dict(n_experts=4)).config
    load = jnp.array([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0]])
    sums = {"load": load, "tokens": jnp.array([8.0, 8.0]), "dropped": jnp.array([0.0, 8.0])}
    found = metrics(sums | {"router_entropy": jnp.array([8.0, 4.0])}, config)
    want = {"max_violation": 1.5, "max_violation_worst": 3.0, "load_entropy": 0.5, "router_entropy": 0.75}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {f"moe/{name}": value for name, value in (want | {"dropped": 0.25}).items()}, abs=1e-6
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(n_experts=6, n_groups=4), "n_experts=6 cannot be split evenly into n_groups=4"),
        (dict(n_experts=8, n_groups=4, top_groups=1, top_k=3), "top_k=3 of only 2 allowed"),
        (dict(n_experts=8, top_k=9), "top_k=9 of only 8 allowed"),
        (dict(n_groups=2, top_groups=3), "top_groups=3 of only n_groups=2"),
        (dict(score="sigmod"), "Did you mean 'sigmoid'"),
        (dict(router="topk"), "Did you mean 'top_k'"),
        (dict(balance="bais"), "Did you mean 'bias'"),
        (dict(dispatch="capacty"), "Did you mean 'capacity'"),
        (dict(group_score="top_2"), "Did you mean 'top2'"),
        (dict(router="expert_choice", balance="bias"), "even by construction"),
        (dict(router="expert_choice", n_groups=2), "knows no groups"),
        (dict(shared_gate=True), "n_shared and d_shared are 0"),
    ],
)
def test_wrong_settings_say_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoEConfig(**settings)
