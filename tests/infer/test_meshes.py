"""Samples on eight devices are those of one, whatever splits rows, heads and parameters."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infer.decode
from infer.decode import decode
from infer.plan import Plan
from infer.prefill import prefill
from infer.sampler import pad_prompts
from infer.sampling import Truncation
from infer.slots import empty_slots
from infer.waves import Waves, copies, in_waves
from model import build
from model.sharding import make_mesh, on_mesh
from tests.sampled import generate
from tests.trunk import TINY, prompts_of, tiny, tiny_params

MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 4, "data": 2}]
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "n": 2, "slots": 8, "stop": (2,)}

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


@pytest.mark.more
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


# More slots than a lane can fill at a time; prompts for fewer or more devices than there are; none that divide.
SPREAD: dict[str, tuple[int, dict[str, Any]]] = {
    "waves of which the last is not full": (43, {"slots": 8, "n": 1}),
    "one wave that is not full": (19, {}),
    "prompts read by several devices": (3, {"n": 8}),
    "a seat for every sample": (16, {"n": 4}),
    "slots that do not divide": (10, {"slots": 6}),
    "too few for all devices": (3, {"n": 2}),
    "one lane, since samples may be interrupted": (8, {"n": 2, "min_complete_groups": 8}),
}


@pytest.mark.more
@pytest.mark.parametrize("kind", SPREAD)
def test_samples_in_lanes_are_those_of_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where those that are left go on in fewer slots."""
    monkeypatch.setattr(infer.decode, "LONG", 1)
    count, options = SPREAD[kind]
    prompts, key = prompts_of(*[2 + i % 5 for i in range(count)]), jax.random.key(1)
    given = {"max_new_tokens": 9, "stop": tuple(range(2, 8)), "shrink": 2} | options
    wanted = generate(tiny(), tiny_params(), prompts, key, **given)
    assert len(set(wanted.lengths.tolist())) > 2, "the test needs samples that end at different times"
    mesh = make_mesh({"fsdp": 8})
    params = jax.device_put(tiny_params(), tiny().shardings(mesh))
    found = on_mesh(mesh)(generate)(tiny(), params, prompts, key, **given)
    for name in ("tokens", "lengths", "finished", "mask", "prompts", "prompt_mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(found.logps, wanted.logps, atol=1e-5)


@pytest.mark.more
def test_depths_and_choices_come_back_in_lanes() -> None:
    mesh, prompts, key = make_mesh({"fsdp": 8}), prompts_of(3, 5), jax.random.key(1)
    experts = {"ffn": "moe", "moe": {"n_experts": 4, "d_expert": 8}}
    recurrent = {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}}
    for changes, options in ((experts, {"routes": True}), (recurrent, {"depth": np.arange(16) % 3 + 1})):
        model = build(TINY | changes)
        params = jax.jit(model.init)(jax.random.key(0))
        given: dict[str, Any] = {"max_new_tokens": 5, "n": 8} | options
        wanted = generate(model, params, prompts, key, **given)
        placed = jax.device_put(params, model.shardings(mesh))
        found = on_mesh(mesh)(generate)(model, placed, prompts, key, **given)
        for name in ("tokens", "depth", "routes", "prompt_routes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


@pytest.mark.parametrize(("prompts", "group", "slots", "waves"), [
    (8, 2, 8, (1, 8, 8, 8)),
    (8, 2, None, (1, 8, 16, 8)),
    (43, 1, 8, (2, 24, 8, 8)),
    (19, 2, None, (1, 24, 48, 8)),
    (256, 16, 8, (32, 8, 8, 8)),
    (10, 2, 6, (1, 10, 6, 1)),
    (7, 2, 8, (1, 7, 8, 1)),
])  # fmt: skip
def test_how_samples_fall_into_waves(
    prompts: int, group: int, slots: int | None, waves: tuple[int, int, int, int]
) -> None:
    """Lanes have at least one prompt each, and as many slots as any other."""
    assert on_mesh(make_mesh({"fsdp": 8}))(in_waves)(prompts, group, slots) == Waves(*waves)
    alone = in_waves(prompts, group, slots)
    assert alone.lanes == 1 and alone.count * alone.prompts - prompts < alone.count


def test_fewer_prompts_than_devices_are_read_by_several() -> None:
    assert copies(3, 8) == 1
    mesh = on_mesh(make_mesh({"fsdp": 8}))
    assert [mesh(copies)(3, group) for group in (1, 2, 3, 8)] == [1, 1, 3, 4]


def test_a_seat_moves_no_keys() -> None:
    """What a device reads of a prompt stays there: nothing as large as the keys of all prompts is gathered."""
    model, mesh = tiny(), make_mesh({"fsdp": 8})
    plan = Plan(16, 32, 2, 24, 4, (2,), Truncation(True), lanes=8)
    params, zeros = jax.jit(model.init)(jax.random.key(0)), jnp.zeros((16, 24), jnp.int32)

    def text(plan: Plan) -> str:
        ready = prefill(model, plan, params, zeros, zeros + 1, None)
        draws = (jax.random.key(0), jnp.arange(32), jnp.float32(1))
        return (
            decode.lower(model, plan, params, ready, empty_slots(model, plan), draws, jnp.int32(9)).compile().as_text()
        )

    keys = rf"\[16,{model.config.n_kv_heads},24,{model.config.head_dim}\][^ ]* all-gather"
    assert not re.search(keys, on_mesh(mesh)(text)(plan))
    assert re.search(keys, on_mesh(mesh)(text)(replace(plan, lanes=1))), "what is looked for is not what it is called"


@pytest.mark.more_but("8")
@pytest.mark.parametrize("count", [8, 16, 5, 19])
def test_prompts_are_read_side_by_side(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device reads a few, one after the other where they are many; what it read stays where it is."""
    monkeypatch.setattr("infer.prefill.PREFILL_TOKENS", 8)
    prompts, mask = pad_prompts(prompts_of(*[3 + i % 5 for i in range(count)]))
    plan = Plan(count, count, 1, prompts.shape[1], 4, (2,), Truncation(True))
    mesh, model = make_mesh({"fsdp": 8}), tiny()
    read = lambda params: prefill.__wrapped__(model, plan, params, jnp.asarray(prompts), jnp.asarray(mask), None)  # noqa: E731
    found = on_mesh(mesh)(jax.jit(read))(jax.device_put(tiny_params(), model.shardings(mesh)))
    wanted = jax.jit(read)(tiny_params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
    rows = {leaf.addressable_shards[0].data.shape[0] for leaf in jax.tree.leaves(found.cache.layers)}
    assert rows == {count if count % 8 else count // 8}
