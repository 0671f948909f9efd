"""Depths that the exit gate chooses at the end of a prompt: drawn in rollouts, learnt from, and by a threshold."""

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

from infer.gate_depths import drawn_depths, prompt_exits, threshold_depths
from infer.recurrence import Recurrence
from model import Model, build
from model.depth import Exit
from model.depth.exit import exit_distribution
from rl.batch import RolloutRows, from_tree, to_tree
from rl.gate_actions import depth_logps
from rl.grpo import grpo_objective
from rl.rules import RolloutRules
from rl.source import RolloutSource
from settings.rl import RLConfig
from settings.run import EvalConfig
from store.records import read_metrics
from tests.model.common import random_params
from tests.rl import test_depth_rl
from tests.rl.test_rollout import RULES
from tests.sampled import generate
from tests.tiny_config import get_config
from tests.trunk import TINY
from train.loop import run

T = 4
BY_GATE = replace(RULES, depth="gate")
# p = (.1, .3, .6 | rest) of a gate, as in the golden numbers of RLTT
DISTRIBUTION = np.array([0.1, 0.27, 0.378, 0.252])


@functools.cache
def model_of(**recurrent: Any) -> Model:
    settings = {"mean": T, "draw": "fixed", "exit_gate": True} | recurrent
    return build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": settings})


@functools.cache
def params() -> Any:
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 0.7 * leaf, random_params(model_of()))


def source(rules: RolloutRules = BY_GATE, model: Model | None = None) -> RolloutSource:
    """Three prompts, four samples each."""
    return test_depth_rl.source(rules, model or model_of())


@functools.cache
def drawn() -> tuple[RolloutRows, dict[str, float]]:
    rollouts = source()
    return jax.tree.map(jnp.asarray, rollouts.next(params(), 0)), rollouts.stats()


def as_logps(p: np.ndarray) -> jax.Array:
    return jnp.log(jnp.asarray(p, jnp.float32))[:, None]


def test_the_distribution_is_read_after_every_iteration_at_the_last_token() -> None:
    """By the full pass of so many iterations; padding on the left changes nothing."""
    model, tokens = model_of(), np.array([[5, 6, 7, 8, 9], [0, 0, 4, 5, 6]], np.int32)
    segments = (tokens > 0).astype(np.int32)

    @jax.jit
    def both(p: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        passes = [model.apply(p, jnp.asarray(tokens[:1]), depth=t).hidden for t in range(1, T + 1)]
        gates = jnp.stack([model.exit_logits(p, hidden)[0, -1] for hidden in passes])
        alone = prompt_exits(model, p, jnp.asarray(tokens[1:, 2:]), jnp.asarray(segments[1:, 2:]))
        return exit_distribution(gates), prompt_exits(model, p, jnp.asarray(tokens), jnp.asarray(segments)), alone

    reference, read, alone = both(params())
    np.testing.assert_allclose(read[:, 0], reference, atol=1e-5)
    np.testing.assert_allclose(read[:, 1], alone[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.exp(read).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(("threshold", "depth"), [(0.05, 1), (0.3, 2), (0.5, 3), (0.74, 3), (0.76, 4), (1.0, 4)])
def test_a_threshold_is_reached_by_the_chances_together(threshold: float, depth: int) -> None:
    assert threshold_depths(as_logps(DISTRIBUTION), threshold).tolist() == [depth]


def test_depths_are_drawn_by_the_distribution_and_by_the_number_of_a_sample() -> None:
    logps, key = jnp.repeat(as_logps(DISTRIBUTION), 4000, 1), jax.random.key(3)
    depths = drawn_depths(logps, key, jnp.arange(4000))
    np.testing.assert_allclose(np.bincount(depths, minlength=T + 1)[1:] / 4000, DISTRIBUTION, atol=0.03)
    first = jax.vmap(lambda t: jax.random.categorical(jax.random.fold_in(jax.random.fold_in(key, 3), t), logps[:, 0]))
    tokens = np.asarray(first(jnp.arange(4000))) + 1
    assert (tokens == np.asarray(depths)).mean() < 0.4, "no noise of a sample's tokens is that of depths"
    some = jnp.array([7, 1234, 2])
    np.testing.assert_array_equal(drawn_depths(logps[:, :3], key, some), depths[some])


def test_a_rollout_draws_depths_that_are_replayed_exactly() -> None:
    batch, stats = drawn()
    depth = np.asarray(batch.depth)
    assert depth.min() >= 1 and depth.max() <= T and len(set(depth.tolist())) > 1
    assert stats["depth/mean"] == pytest.approx(depth.mean())
    _, _, metrics = jax.jit(grpo_objective(model_of()))(params(), batch, jax.random.key(0))
    assert float(metrics["ratio_deviation/max"]) <= 1e-5
    exits = jax.jit(lambda p: prompt_exits(model_of(), p, batch.shared.tokens, batch.shared.segments))(params())
    chances = [exits[d - 1, prompt] for d, prompt in zip(depth, np.asarray(batch.prompt_of), strict=True)]
    np.testing.assert_allclose(batch.depth_logps, chances, atol=1e-5)
    kept = from_tree(to_tree(jax.device_get(batch)))
    np.testing.assert_array_equal(kept.depth_logps, batch.depth_logps)


def test_depths_are_learnt_towards_what_paid() -> None:
    """Completions that are masked out leave the action alone: its chance rises with its advantage."""
    batch, _ = drawn()
    silent, shallow = batch.replace(mask=jnp.zeros_like(batch.mask)), batch.depth <= 2
    gains = jnp.where(shallow, 1.0, -1.0)

    @jax.jit
    def moves(p: Any) -> tuple[Any, jax.Array, jax.Array]:
        objective = grpo_objective(model_of())
        gradient = jax.grad(lambda p: objective(p, silent.replace(advantages=gains), jax.random.key(0))[0])(p)
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        moved = jax.tree.map(lambda x, g: x - 1e-3 * g / size, p, gradient)
        return gradient, depth_logps(model_of(), p, batch), depth_logps(model_of(), moved, batch)

    gradient, before, after = moves(params())
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient)), "the model is part of the policy"
    assert float((after - before)[shallow].mean()) > 0 > float((after - before)[~shallow].mean())


def test_a_gate_that_learns_alone_leaves_the_model_as_it_is() -> None:
    """Though the tokens have advantages of their own."""
    batch = drawn()[0]
    batch = batch.replace(advantages=jnp.where(batch.depth <= 2, 1.0, -1.0))
    alone = grpo_objective(model_of(exit_stage="gate"))
    moves = jax.jit(jax.grad(lambda p: alone(p, batch, jax.random.key(0))[0]))(params())
    moved = {name for name, tree in moves.items() if any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))}
    assert moved == {"exit_gate"}


def test_another_depth_has_another_chance() -> None:
    batch, _ = drawn()
    other = batch.replace(depth=batch.depth % T + 1)
    assert float(jnp.abs(depth_logps(model_of(), params(), other) - batch.depth_logps).min()) > 1e-4


def test_an_iteration_costs() -> None:
    free, paying = source(), source(replace(BY_GATE, depth_cost=0.2))
    batches = [each.next(params(), 0) for each in (free, paying)]
    np.testing.assert_array_equal(*(batch.depth for batch in batches))
    earned = [np.array([record["reward"] for record in each.samples()]) for each in (free, paying)]
    np.testing.assert_allclose(earned[1], earned[0] - 0.2 * np.asarray(batches[0].depth), atol=1e-6)


def test_answers_by_the_gate_are_those_of_the_depths_it_names() -> None:
    """However the samples are numbered; and of a threshold the same for all samples of a prompt."""
    prompts, key = [[5, 6, 7], [8, 9], [4, 4, 4, 4]], jax.random.key(1)
    options: dict[str, Any] = {"max_new_tokens": 3, "n": 2}
    by_gate = generate(model_of(), params(), prompts, key, depth="gate", gate_threshold=0.6, **options)
    assert by_gate.depth is not None
    depths = by_gate.depth[:, 0]
    assert (depths.reshape(3, 2) == depths.reshape(3, 2)[:, :1]).all()
    told = generate(model_of(), params(), prompts, key, depth=depths, max_depth=T, **options)
    np.testing.assert_array_equal(by_gate.tokens, told.tokens)
    np.testing.assert_array_equal(by_gate.depth, told.depth)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"depth": "gate", "exit": Exit("gate")}, "leave out exit"),
        ({"depth": "gate", "max_depth": 3}, "max_depth=3"),
        ({"depth": 2, "gate_threshold": 0.5}, 'are of depth="gate"'),
        ({"depth": "gate", "gate_threshold": 1.5}, "at most 1"),
        ({"depth": "gate", "gate_threshold": 0.5, "gate_drawn": True}, "not drawn"),
        ({"depth": "task"}, 'or "gate"; found task'),
    ],
)
def test_what_a_gate_does_not_go_with(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recurrence(**asked)


def test_models_without_a_gate_are_refused() -> None:
    with pytest.raises(ValueError, match=r'rl\.depth="gate" asks the exit gate .* has none'):
        source(model=model_of(exit_gate=False))
    with pytest.raises(ValueError, match="it is a plain stack"):
        source(model=build(TINY))
    with pytest.raises(ValueError, match='depth="gate" asks the exit gate'):
        stack = build(TINY)
        generate(stack, random_params(stack), [[4]], jax.random.key(0), depth="gate", max_new_tokens=2)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rl\.max_depth=3 bounds depths that are drawn"):
        RLConfig(depth="gate", max_depth=3)
    with pytest.raises(ValueError, match=r"rl\.loops='uniform' reads the iterations"):
        RLConfig(depth="gate", loops="uniform")
    with pytest.raises(ValueError, match=r'eval\.depth="gate" ends all tokens'):
        EvalConfig(depth="gate", exit="kl")


@pytest.mark.more
def test_a_run_learns_when_to_stop_and_is_measured_there(one_device: Any, tmp_path: Path) -> None:
    """Two updates a rollout: the first is on policy."""
    found: ConfigDict = get_config("grpo")
    found.steps = 2
    found.model.update(depth="recurrent", n_layers=3)
    found.model.recurrent.update(mean=3, draw="fixed", exit_gate=True)
    found.rl.update(depth="gate", depth_cost=0.05, minibatches=2)
    found.eval.update(depth="gate", loss_batches=1)
    result = run(found, tmp_path / "run")
    assert 1 <= result["evaluation"]["mean_depth"] <= 3
    first = read_metrics(tmp_path / "run")[0]
    assert first["ratio_deviation/max"] < 1e-5
    assert 1 <= first["depth/mean"] <= 3
