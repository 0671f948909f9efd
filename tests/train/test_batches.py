"""Batches on devices: rows are spread, what they share is everywhere, and what is planned is what sources yield."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.batch import Batch, TokenRows
from model.prefix import Prompts
from model.sharding import batch_sharding, make_mesh, replicated
from rl.batch import RolloutRows
from tests.tiny_config import get_config
from train.algorithms import UPDATES, build_algorithm
from train.batches import abstract, check_rows, on_devices
from train.settings import override
from train.setup import prepare

ROWS, COLUMNS, PROMPTS, WIDTH = 16, 6, 3, 4
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def rollout_rows() -> RolloutRows:
    """Sixteen completions of three prompts, as numpy arrays."""
    rng = np.random.default_rng(0)
    numbers = {name: rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for name in ("mask", "old_logps")}
    tokens, segments = rng.integers(1, 9, (PROMPTS, WIDTH)).astype(np.int32), np.ones((PROMPTS, WIDTH), np.int32)
    return RolloutRows(
        tokens=rng.integers(1, 9, (ROWS, COLUMNS)).astype(np.int32),
        shared=Prompts(tokens=tokens, segments=segments),
        lengths=np.full(ROWS, COLUMNS, np.int32),
        prompt_of=np.arange(ROWS, dtype=np.int32) % PROMPTS,
        advantages=rng.standard_normal(ROWS).astype(np.float32),
        **numbers,
    )


def shapes_of(batch: Batch) -> Any:
    """The batch with (shape, dtype) in the place of every array."""
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_rows_are_spread_and_what_they_share_is_everywhere(shape: dict[str, int]) -> None:
    batch, mesh = rollout_rows(), make_mesh(shape)
    placed = on_devices(batch, mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    for leaf in jax.tree.leaves(placed.replace(shared=None)):
        assert leaf.sharding.is_equivalent_to(batch_sharding(mesh), leaf.ndim)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {ROWS // parts}
    for leaf in jax.tree.leaves(placed.shared):
        assert leaf.sharding.is_equivalent_to(replicated(mesh), leaf.ndim)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(PROMPTS, WIDTH)}
    assert jax.tree.structure(placed) == jax.tree.structure(batch)


def test_what_lies_there_already_stays() -> None:
    """The same buffers on every device; an array from elsewhere is brought there."""
    mesh = make_mesh({"fsdp": 8})
    placed = on_devices(rollout_rows(), mesh)
    moved = placed.replace(advantages=jnp.arange(ROWS, dtype=jnp.float32))
    again = on_devices(moved, mesh)
    buffers = lambda x: [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]  # noqa: E731
    same = jax.tree.map(lambda x, y: buffers(x) == buffers(y) and x.sharding == y.sharding, again, placed)
    assert not same.advantages and all(jax.tree.leaves(same.replace(advantages=None)))
    assert again.advantages.sharding == placed.advantages.sharding
    np.testing.assert_array_equal(again.advantages, np.arange(ROWS))


def test_one_device_needs_no_mesh() -> None:
    placed = on_devices(rollout_rows(), None)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    jax.tree.map(np.testing.assert_array_equal, placed, rollout_rows())


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_abstract_shapes_are_those_of_a_batch_that_is_placed(shape: dict[str, int]) -> None:
    mesh, batch = make_mesh(shape), rollout_rows()
    found, real = abstract(batch, mesh), on_devices(batch, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(real)
    assert shapes_of(found) == shapes_of(real)
    equivalent = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, y.ndim), found, real)
    assert all(jax.tree.leaves(equivalent))


def test_rows_that_do_not_divide_are_refused() -> None:
    mesh, twelve = make_mesh({"fsdp": 8}), jax.tree.map(lambda x: x[:12], rollout_rows())
    with pytest.raises(ValueError, match="12 rows cannot be split evenly over mesh data x fsdp x expert = 8"):
        abstract(twelve, mesh)
    with pytest.raises(ValueError, match="16 rows cannot be cut into micro-batches of 5; set micro_batch to a divisor"):
        check_rows(ROWS, 5, mesh)
    check_rows(ROWS, 4, mesh)
    check_rows(12, 5 * 12, None)


RECURRENT = {"model.depth": "recurrent", "model.n_layers": 3, "model.recurrent.mean": 2}
MOE = {"model.ffn": "moe", "model.moe.n_experts": 4, "model.moe.top_k": 2}
KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft packed": {"data.pack": True},
    "grpo": {},
    "grpo rows with prompts": {"rl.share_prompts": False},
    "grpo kl": {"rl.beta": 0.1},
    "grpo measured kl": {"rl.track_kl": True},
    "grpo entropy share": {"rl.entropy_share": 0.5},
    "grpo importance weights": {"rl.importance_cap": 2.0},
    "grpo reinforce_pp": {"rl.estimator": "reinforce_pp"},
    "grpo entropy target": {"rl.entropy_target": 1.0},
    "grpo drawn depth": RECURRENT | {"model.recurrent.draw": "poisson", "rl.depth": "drawn"},
    "grpo recurrent": RECURRENT,
    "grpo routes": MOE | {"rl.replay_routes": True},
    "grpo free routes": MOE,
    "grpo minibatches": {"rl.minibatches": 2},
    "grpo carry": {"rl.carry": 1},
}


def config_of(kind: str) -> ConfigDict:
    """A tiny config, changed as KINDS says."""
    return override(get_config(kind.split()[0]), KINDS[kind])[0]


def as_wide(shapes: Batch, width: int) -> Batch:
    """The planned shapes with prompts of `width` columns, which depend on the data."""
    if shapes.shared is None:
        return shapes
    cut = lambda x: jax.ShapeDtypeStruct((x.shape[0], width, *x.shape[2:]), x.dtype)  # noqa: E731
    return shapes.replace(shared=jax.tree.map(cut, shapes.shared))


@pytest.mark.more_but("sft packed", "grpo kl", "grpo drawn depth", "grpo routes", "grpo minibatches", "grpo carry")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planned_is_what_the_source_yields(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, types and which arrays there are; so the step that is planned is the one that is compiled."""
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    config = config_of(kind)
    setup = prepare(config, tmp_path, lambda text: None)
    algorithm = build_algorithm(setup)
    batch = algorithm.source.next(setup.make_params(), 0)
    assert isinstance(batch, RolloutRows if config.algorithm == "grpo" else TokenRows)
    # As a planner asks, from shapes alone.
    alone = dataclasses.replace(setup, make_params=setup.model.abstract)
    planned = UPDATES[config.algorithm](alone).batch
    for shapes in (planned, algorithm.update.batch):
        wide = as_wide(shapes, 0 if batch.shared is None else batch.shared.tokens.shape[1])
        assert jax.tree.structure(wide) == jax.tree.structure(batch)
        assert shapes_of(wide) == shapes_of(batch)
