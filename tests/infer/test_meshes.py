"""Samples on eight devices are those of one, whatever splits rows, heads and parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.prefill import Plan, prefill
from infer.sampler import generate, pad_prompts
from infer.sampling import Sampling
from model.sharding import make_mesh, on_mesh
from tests.trunk import prompts_of, tiny, tiny_params

MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 4, "data": 2}]
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "samples_per_prompt": 2, "slots": 8, "stop": (2,)}

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_samples_are_those_of_one_device(shape: dict[str, int]) -> None:
    """Sixteen of them in eight slots, so that seats are given twice; and the rows of the cache are spread."""
    mesh, prompts, key = make_mesh(shape), prompts_of(3, 5, 4, 2, 6, 3, 2, 5), jax.random.key(0)
    wanted = generate(tiny(), tiny_params(), prompts, key, **OPTIONS)
    params = jax.device_put(tiny_params(), tiny().shardings(mesh))
    found = on_mesh(mesh)(generate)(tiny(), params, prompts, key, **OPTIONS)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logps, wanted.logps, atol=1e-5)
    cache = on_mesh(mesh)(jax.jit(lambda: tiny().init_cache(8, 16)))()
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    assert {leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(cache.layers)} == {8 // parts}


@pytest.mark.parametrize("count", [8, 16, 5, 19])
def test_prompts_are_read_side_by_side(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device reads a few, one after the other where they are many; what it read stays where it is."""
    monkeypatch.setattr("infer.prefill.PREFILL_TOKENS", 8)
    prompts, mask = pad_prompts(prompts_of(*[3 + i % 5 for i in range(count)]))
    plan = Plan(count, count, 1, prompts.shape[1], 4, (2,), Sampling(True))
    mesh, model = make_mesh({"fsdp": 8}), tiny()
    read = lambda params: prefill.__wrapped__(model, plan, params, jnp.asarray(prompts), jnp.asarray(mask), None)  # noqa: E731
    found = on_mesh(mesh)(jax.jit(read))(jax.device_put(tiny_params(), model.shardings(mesh)))
    wanted = jax.jit(read)(tiny_params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
    rows = {leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(found.cache.layers)}
    assert rows == {count if count % 8 else count // 8}
