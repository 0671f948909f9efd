"""Every mixer x feed-forward x multi-token prediction x depth, through everything a model goes through.

Each combination: a training step, cached decode against one full pass, a rollout whose log-probs are the trainer's (of
a recurrent model with a depth of its own for every sample), a GRPO step from it, and a checkpoint. Those with
multi-token prediction hold all that the others do: they also take the same steps on eight devices, and they alone stand
for recurrent depth. There the compiler takes half a minute for a step on eight devices: four combinations, with each
mixer and each feed-forward among them, take the supervised one; with FULL_GRID=1 in the environment all twelve do.
"""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from infer.sampler import generate
from model import Model, ModelConfig, build
from model.rules import learn
from model.sharding import batch_sharding, make_mesh
from rl.experience import completion_start, training_batch
from rl.grpo import grpo_objective
from tests.trunk import TINY, assert_trees_close, prompts_of, trees_equal
from train.checkpoint import Checkpoints
from train.losses import batch_logps, sft_objective
from train.optimizer import make_optimizer, optimizer_config
from train.rows import RowTraining, row_training
from train.state import TrainState, make_state
from train.step import Step, make_step

MIXERS = ("gqa", "mla", "mingru", "minlstm")
FEED_FORWARDS = ("glu", "moe", "peer")
GRID = [
    *itertools.product(MIXERS, FEED_FORWARDS, (0, 1), ("stack",)),
    *itertools.product(MIXERS, FEED_FORWARDS, (1,), ("recurrent",)),
]
PARTS = {
    "mla": {"q_rank": 24, "kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "v_dim": 8},
    "moe": {"n_experts": 4, "top_k": 2, "d_expert": 16, "n_shared": 1, "score": "sigmoid", "balance": "bias"},
    "peer": {"n_experts": 64, "heads": 2, "top_k": 3, "key_dim": 16},
    "rnn": {"expansion": 1.5, "conv": 3},
}
RECURRENT = {
    "n_layers": 3,
    "depth": "recurrent",
    "norm": "sandwich",
    "recurrent": {"mean": 3, "grad_steps": 2, "draw": "lognormal"},
}
SPREAD = {("gqa", "moe"), ("mla", "peer"), ("mingru", "glu"), ("minlstm", "moe")}  # of those with recurrent depth
DEPTHS = np.array([1, 4, 2, 3, 2, 4, 1, 3])  # of the rollout's samples
OPTIMIZER = {"lr": 1e-2, "eps": 1e-3}
MESH = {"expert": 2, "fsdp": 2, "tensor": 2}
PROMPTS = prompts_of(3, 5, 4, 2)
T = 6


class Case(NamedTuple):
    """One combination, with its parameters as training starts from them."""

    model: Model
    params: Any
    rows: RowTraining | None


@functools.lru_cache(maxsize=1)
def case_of(mixer: str, ffn: str, ahead: int, depth: str) -> Case:
    settings = TINY | PARTS | {"n_layers": 1, "mixer": mixer, "ffn": ffn, "mtp": {"depth": ahead}}
    settings |= RECURRENT if depth == "recurrent" else {}
    model = build(ModelConfig.from_dict(settings))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key in ("scale", "query_norm_scale", "var"):
            return jnp.asarray(1 + 0.1 * noise, leaf.dtype)
        return jnp.asarray((1.0 if path[-1].key == "embed" else 0.2) * noise, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, model.abstract())
    return Case(model, params, row_training(model, optimizer_config(OPTIMIZER), 10))


def steps_of(case: Case, mesh: Any = None) -> tuple[Step, Step]:
    """The supervised step and the GRPO step."""
    optimizer = make_optimizer(OPTIMIZER, 10, axes=case.model.axes())
    rules = functools.partial(learn, case.model.config)
    objectives = (sft_objective(case.model), grpo_objective(case.model))
    sft, grpo = (make_step(o, optimizer, mesh, learn=rules, rows=case.rows) for o in objectives)
    return sft, grpo


def state_of(case: Case, mesh: Any = None) -> TrainState:
    """A state of its own arrays: steps donate it."""
    shardings = None if mesh is None else case.model.shardings(mesh)
    place = lambda: jax.device_put(jax.device_get(case.params), shardings)  # noqa: E731
    optimizer = make_optimizer(OPTIMIZER, 10, axes=case.model.axes())
    return make_state(place, optimizer, ConfigDict({"seed": 0, "optimizer": {"ema": 0.0}}), mesh, case.rows)


def demonstrations(rows: int = 8, length: int = 12) -> dict[str, Any]:
    """Rows of two packed documents and some padding."""
    rng = np.random.default_rng(1)
    column = np.arange(length)
    first, end = rng.integers(3, 6, (rows, 1)), rng.integers(8, length + 1, (rows, 1))
    segments = np.where(column < first, 1, np.where(column < end, 2, 0))
    positions = np.where(segments == 2, column - first, np.where(segments == 1, column, 0))
    tokens = rng.integers(2, TINY["vocab_size"], (rows, length)) * (segments > 0)
    ints = {"tokens": tokens, "positions": positions, "segments": segments}
    return {k: v.astype(np.int32) for k, v in ints.items()} | {"mask": (segments > 0).astype(np.float32)}


def rollout_batch(case: Case, params: Any) -> dict[str, Any]:
    """Two samples of each prompt as a GRPO batch, with made-up advantages."""
    options: dict[str, Any] = {"max_new_tokens": T, "samples_per_prompt": 2, "slots": 5, "stop": (2, 3)}
    if case.model.config.depth == "recurrent":
        options["depth"] = DEPTHS
    rollout = generate(case.model, params, PROMPTS, jax.random.key(0), **options)
    advantages = np.random.default_rng(2).standard_normal(len(rollout.tokens))
    return training_batch(rollout, advantages)


def decoded(model: Model, params: Any, batch: dict[str, Any], prefill: int) -> jax.Array:
    """Hidden states of a prefill and single steps."""

    @jax.jit
    def run(cache: Any, *columns: jax.Array) -> Any:
        out = model.apply(params, *columns, cache=cache)
        return out.hidden, out.cache

    columns = [jnp.asarray(batch[name]) for name in ("tokens", "positions", "segments")]
    cache, found = model.init_cache(*columns[0].shape), []
    stops = [prefill, *range(prefill + 1, columns[0].shape[1] + 1)]
    for start, stop in zip([0, *stops], stops, strict=False):
        hidden, cache = run(cache, *(c[:, start:stop] for c in columns))
        found.append(hidden)
    return jnp.concatenate(found, 1)


def assert_spread(case: Case, batches: tuple[Any, ...], wanted: list[Any], params: Any) -> None:
    """The same first steps on eight devices give the same metrics and parameters."""
    mesh = make_mesh(MESH)
    state = state_of(case, mesh)
    for step, data, want in zip(steps_of(case, mesh), batches, wanted, strict=False):
        state, found = step(state, jax.device_put(jax.device_get(data), batch_sharding(mesh)))
        for name in want:
            np.testing.assert_allclose(found[name], want[name], rtol=5e-5, atol=1e-5, err_msg=name)
    assert_trees_close(state.params, params, 2e-5)


@pytest.mark.parametrize(("mixer", "ffn", "ahead", "depth"), GRID, ids=lambda value: str(value))
def test_a_combination(mixer: str, ffn: str, ahead: int, depth: str, tmp_path: Path) -> None:
    case = case_of(mixer, ffn, ahead, depth)
    model, params = case.model, case.params

    batch = demonstrations()
    full = jax.jit(lambda p: model.apply(p, *(batch[k] for k in ("tokens", "positions", "segments"))).hidden)(params)
    stepped, real = decoded(model, params, batch, 7), batch["segments"] > 0
    assert np.abs(np.asarray(full - stepped))[real].max() < 1e-5 * np.asarray(full)[real].std()

    rollout = jax.tree.map(jnp.asarray, rollout_batch(case, params))
    start = completion_start(rollout)
    logps = jax.jit(lambda p: batch_logps(model, p, rollout, start=start)[0])(params)
    drift = jnp.where(rollout["mask"][:, start + 1 :] > 0, logps - rollout["old_logps"], 0)
    assert float(jnp.abs(drift).max()) < 1e-5

    alone, wanted, spread = state_of(case), [], 1 if depth == "recurrent" else 2
    for step, data in zip(steps_of(case), (batch, rollout), strict=True):
        alone, metrics = step(alone, jax.tree.map(jnp.asarray, data))
        assert float(metrics["skipped"]) == 0
        wanted.append(metrics)
        if ahead and len(wanted) == spread and (spread == 2 or (mixer, ffn) in SPREAD or os.environ.get("FULL_GRID")):
            assert_spread(case, (batch, rollout)[:spread], wanted, alone.params)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), alone.params, params)
    still = [jax.tree_util.keystr(path) for path, by in jax.tree_util.tree_leaves_with_path(moved) if not by]
    assert not still, f"nothing moved {still}"

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(alone, {"n": 1})
    checkpoints.close()
    restored, position, _ = Checkpoints(tmp_path).restore(state_of(case))
    assert position == {"n": 1}
    assert trees_equal(restored, alone)
