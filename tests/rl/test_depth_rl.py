"""GRPO for recurrent models: each sample's drawn depth is replayed, and iterations and tokens can cost reward."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from model import Model, build
from rl.batch import RolloutRows
from rl.grpo import grpo_objective
from rl.rollout import RolloutOptions, RolloutWorker
from rl.rules import RolloutRules
from rl.source import RolloutSource
from store.records import read_metrics
from tests.model.common import random_params
from tests.rl.test_rollout import RULES, Digits
from tests.tiny_config import get_config
from tests.trunk import TINY, TOKENIZER
from train.completions import completion_logps
from train.loop import run

DRAWN = replace(RULES, depth="drawn", max_depth=6)


@functools.cache
def model_of(draw: str = "poisson") -> Model:
    """One layer each of prelude, core and coda, three iterations on average."""
    return build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 3, "draw": draw}})


@functools.cache
def params() -> Any:
    """Weights with the gain of a trained model: others amplify rounding from iteration to iteration."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 0.7 * leaf, random_params(model_of()))


def source(rules: RolloutRules = DRAWN, model: Model | None = None) -> RolloutSource:
    """Three prompts, four samples each."""
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=3, seed=0))
    worker = RolloutWorker(
        model or model_of(), asked, Digits(), TOKENIZER, rules, RolloutOptions(seed=5, say=lambda _: None)
    )
    return RolloutSource(worker, rules, seed=5)


@functools.cache
def drawn() -> tuple[RolloutRows, dict[str, float], list[dict[str, Any]]]:
    """(batch, statistics, samples) of a rollout in which every sample has its own depth."""
    rollouts = source()
    return jax.tree.map(jnp.asarray, rollouts.next(params(), 0)), rollouts.stats(), rollouts.samples()


def off_policy(batch: RolloutRows) -> float:
    """The largest change of a log-prob on replay."""
    logps = jax.jit(lambda p, batch: completion_logps(model_of(), p, batch)[0])(params(), batch)
    return float(jnp.abs((logps - batch.old_logps) * batch.mask).max())


def test_drawn_depths_are_replayed() -> None:
    batch, stats, _ = drawn()
    depth = np.asarray(batch.depth)
    assert depth.shape == (12,) and depth.min() >= 1 and depth.max() <= 6 and len(set(depth.tolist())) > 2
    assert (stats["depth/mean"], stats["depth/std"]) == pytest.approx((depth.mean(), depth.std()))
    assert -1 <= stats["depth/score_correlation"] <= 1
    assert off_policy(batch) <= 1e-5
    _, _, metrics = jax.jit(grpo_objective(model_of()))(params(), batch, jax.random.key(0))
    assert float(metrics["ratio_deviation/max"]) <= 1e-5


@pytest.mark.parametrize("wrong", ["one more", "another sample's", "the mean"])
def test_another_depth_is_another_policy(wrong: str) -> None:
    batch, _, _ = drawn()
    depth = batch.depth
    changed = {"one more": depth + 1, "another sample's": jnp.roll(depth, 1), "the mean": jnp.full_like(depth, 3)}
    assert off_policy(batch.replace(depth=changed[wrong])) > 1e-3


def test_depths_belong_to_the_step() -> None:
    again, later = source(), source()
    np.testing.assert_array_equal(again.next(params(), 0).depth, drawn()[0].depth)
    assert (np.asarray(later.next(params(), 1).depth) != np.asarray(drawn()[0].depth)).any()


def test_costs_are_taken_off_the_reward() -> None:
    """The same samples: costs change what they are worth, and their advantages."""
    batch, stats, samples = drawn()
    free = np.array([record["reward"] for record in samples])
    lengths = np.asarray(batch.mask).sum(1)
    depth = np.asarray(batch.depth)
    paying = source(replace(DRAWN, token_cost=0.03, depth_cost=0.2))
    paid = paying.next(params(), 0)
    np.testing.assert_array_equal(paid.tokens, batch.tokens)
    rewards = np.array([record["reward"] for record in paying.samples()])
    np.testing.assert_allclose(rewards, free - 0.03 * lengths - 0.2 * depth, atol=1e-6)
    assert paying.stats()["reward"] == pytest.approx(rewards.mean(), abs=1e-6)
    assert paying.stats()["score"] == pytest.approx(stats["score"])
    assert np.abs(paid.advantages - np.asarray(batch.advantages)).max() > 0.1


def test_tokens_cost_without_depths_too() -> None:
    free, paying = source(replace(RULES)), source(replace(RULES, token_cost=0.05))
    lengths = np.asarray(free.next(params(), 0).mask).sum(1)
    paying.next(params(), 0)
    rewards = [np.array([record["reward"] for record in each.samples()]) for each in (free, paying)]
    np.testing.assert_allclose(rewards[1], rewards[0] - 0.05 * lengths, atol=1e-6)


@pytest.mark.parametrize(
    ("rules", "draw", "words"),
    [
        (DRAWN, "fixed", "found 'fixed'"),
        (replace(RULES, depth_cost=0.1), "poisson", r"rl\.depth_cost=0\.1"),
    ],
)
def test_settings_without_effect_are_refused(rules: RolloutRules, draw: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        source(rules, model_of(draw))


def test_a_plain_stack_has_no_depth_to_draw() -> None:
    with pytest.raises(ValueError, match="takes a recurrent model"):
        source(DRAWN, build(TINY))


@pytest.mark.more
def test_a_run_is_measured_at_several_depths(one_device: Any, tmp_path: Path) -> None:
    """And its first update, at drawn depths, is on policy."""
    found: ConfigDict = get_config("grpo")
    found.steps = 1
    found.model.update(depth="recurrent", n_layers=3)
    found.model.recurrent.update(mean=2, draw="poisson")
    found.rl.update(depth="drawn", depth_cost=0.01)
    found.eval.update(depths=(1, 4), loss_batches=1)
    result = run(found, tmp_path / "run")
    wanted = {f"{name}_at_depth_{depth}" for name in ("accuracy", "answer_loss") for depth in (1, 4)}
    measured = result["evaluation"]
    assert wanted <= set(measured)
    assert measured["answer_loss_at_depth_1"] != measured["answer_loss_at_depth_4"]
    first = read_metrics(tmp_path / "run")[0]
    assert first["ratio_deviation/max"] < 1e-5
    assert {"depth/mean", "depth/std", "depth/score_correlation"} <= set(first)
