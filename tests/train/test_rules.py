"""What is learnt by rule: moved once per step by the whole batch, never by a gradient, and not by a bad step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.sources.batch import TokenRows
from model import Model, ModelConfig, build
from model.reports import Reports
from model.rules import learn
from tests.trunk import TINY, tiny_params, trees_equal
from train.accumulate import UpdatePlan
from train.objectives.losses import Objective, add_auxiliary_losses, sft_objective
from train.optimizer import make_optimizer
from train.state import new_state, partition
from train.step import make_step

RATE = 0.125  # a power of two: sums of it are exact
MOE = {"n_experts": 4, "top_k": 2, "d_expert": 16, "balance": "bias", "bias_rate": RATE, "aux_weight": 0.0}
ADAMW = {"lr": 1e-3, "weight_decay": 0.1, "no_decay": ()}


@functools.cache
def model_of(depth: int = 0, **moe: Any) -> Model:
    return build(ModelConfig.from_dict(TINY | {"ffn": "moe", "moe": MOE | moe, "mtp": {"depth": depth}}))


def params_of(model: Model) -> Any:
    return jax.jit(model.init)(jax.random.key(0))


def batch_of(rows: int = 8, length: int = 12) -> TokenRows:
    """Rows of different lengths, padded."""
    rng = np.random.default_rng(0)
    seen = np.arange(length) < rng.integers(4, length + 1, (rows, 1))
    tokens = rng.integers(2, TINY["vocab_size"], (rows, length)) * seen
    ints = {"tokens": tokens, "positions": np.arange(length) * seen, "segments": seen}
    return TokenRows(**{k: jnp.asarray(v, jnp.int32) for k, v in ints.items()}, mask=jnp.asarray(seen, jnp.float32))


def stepped(model: Model, objective: Objective | None = None, **options: Any) -> tuple[Any, Any]:
    optimizer = make_optimizer(ADAMW, 10, axes=model.axes())
    rules = functools.partial(learn, model.config)
    step = make_step(objective or sft_objective(model), optimizer, learn=rules, **options)
    return step(new_state(params_of(model), optimizer, seed=0), batch_of())


@pytest.mark.programs(250)
def test_the_bias_moves_by_its_rate_against_the_load() -> None:
    model = model_of()
    batch = batch_of()
    loads = jax.jit(lambda params, tokens, segments: model.apply(params, tokens, segments=segments).aux["load"])
    load = loads(params_of(model), batch.tokens, batch.segments)
    np.testing.assert_array_equal(load.sum(-1), 2 * batch.segments.sum())
    state, metrics = stepped(model)
    for i in range(model.config.n_layers):
        found = state.params["state"][f"layer_{i}"]["ffn"]["bias"]
        np.testing.assert_array_equal(found, RATE * np.sign(load[i].mean() - load[i]))
    assert float(metrics["moe/max_violation"]) == pytest.approx(float((load.max(-1) / load.mean(-1) - 1).mean()))
    assert float(metrics["moe/dropped"]) == 0


@pytest.mark.more
@pytest.mark.parametrize("depth", [0, 1])
def test_micro_batches_move_it_as_the_whole_batch_does(depth: int) -> None:
    (whole, want), (parts, found) = (stepped(model_of(depth), plan=UpdatePlan(m)) for m in (None, 2))
    assert trees_equal(parts.params["state"], whole.params["state"])
    for name in ("moe/max_violation", "moe/load_entropy"):
        assert float(found[name]) == pytest.approx(float(want[name]), rel=1e-5)


@pytest.mark.more
def test_modules_that_predict_ahead_have_biases_of_their_own() -> None:
    state, metrics = stepped(model_of(1))
    ahead = state.params["state"]["mtp_0"]["block"]["ffn"]["bias"]
    assert set(np.abs(np.asarray(ahead)).tolist()) <= {0.0, RATE}
    assert np.abs(ahead).max() == RATE
    assert "mtp/moe/max_violation" in metrics


@pytest.mark.more
def test_neither_gradient_nor_decay_nor_moments_touch_it() -> None:
    model = model_of(bias_rate=0.0)
    params = params_of(model)
    params["state"] = jax.tree.map(lambda x: x + 0.5, params["state"])
    gradients = jax.grad(lambda p: sft_objective(model)(p, batch_of(), jax.random.key(0))[0])(params)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["state"]))
    before = jax.tree.map(np.asarray, params["state"])
    optimizer = make_optimizer(ADAMW, 10, axes=model.axes())
    state = new_state(params, optimizer, seed=0)
    assert not any(
        "state" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)
    )
    step = make_step(sft_objective(model), optimizer, learn=functools.partial(learn, model.config))
    state, _ = step(state, batch_of())
    assert trees_equal(state.params["state"], before)


def test_a_bad_step_leaves_it_alone() -> None:
    def poisoned(params: Any, batch: Any, key: jax.Array) -> Any:
        total, count, metrics = sft_objective(model_of())(params, batch, key)
        return total * jnp.nan, count, metrics

    state, metrics = stepped(model_of(), poisoned)
    assert float(metrics["bad"]) == 1
    assert trees_equal(state.params["state"], params_of(model_of())["state"])


def test_terms_of_the_layers_are_means_whatever_the_count() -> None:
    reports = Reports({"balance": jnp.array([0.25, 0.5])}, {"load": jnp.ones((2, 4))})
    total, count, metrics = add_auxiliary_losses((jnp.float32(10), jnp.float32(4), {}), reports, ahead=True)
    assert float(total) == 10 + 4 * 0.75
    assert [float(x) for x in metrics["mtp/balance_loss"]] == [3.0, 4.0]
    assert set(metrics["sums"].ahead.sums) == {"load"} and not jax.tree.leaves(metrics["sums"].stack)
    assert float(count) == 4


def test_a_dense_model_has_no_such_state() -> None:
    weights, tables, by_rule = partition(tiny_params())
    assert weights == tiny_params()
    assert (tables, by_rule) == ({}, {})


def test_averages_cover_it_and_a_plain_optimizer_trains_it() -> None:
    model = model_of()
    step = make_step(sft_objective(model), optax.sgd(0.1), ema_decay=0.5, learn=functools.partial(learn, model.config))
    state, _ = step(new_state(params_of(model), optax.sgd(0.1), seed=0, ema=True), batch_of())
    now, average = (tree["state"]["layer_0"]["ffn"]["bias"] for tree in (state.params, state.ema))
    np.testing.assert_array_equal(average, 0.5 * now)
