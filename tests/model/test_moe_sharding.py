"""Experts spread over a mesh give what one device gives, and count every token once."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model
from model.platform import expert_dispatch
from model.sharding import make_mesh, parse_rules, using
from tests.model.common import random_params, tiny, tokens_of

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESHES: tuple[dict[str, int], ...] = (
    {"expert": 8},
    {"expert": 4, "fsdp": 2},
    {"expert": 2, "tensor": 2, "data": 2},
    {"fsdp": 4, "context": 2},
)
MOE: dict[str, Any] = dict(n_experts=8, top_k=2, d_expert=24, balance="bias", score="sigmoid", n_shared=1)


def ids(shape: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in shape.items())


@functools.cache
def model_of(biases: bool = False, **moe: Any) -> Model:
    return tiny(n_layers=1, n_kv_heads=4, ffn="moe", mlp_bias=biases, moe=MOE | moe | {"router_bias": biases})


def batch_of(rows: int) -> tuple[jax.Array, jax.Array]:
    """Tokens, and segments with padding that is spread unevenly."""
    segments = np.ones((rows, 6), np.int32)
    segments[0, :3] = 0
    return tokens_of(model_of(), (rows, 6)), jnp.asarray(segments)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(model: Model, params: Any, tokens: jax.Array, segments: jax.Array) -> Any:
    def loss(params: Any) -> Any:
        out = model.apply(params, tokens, segments=segments)
        seen = jnp.where(segments[..., None] > 0, out.hidden, 0.0)
        return (seen * jnp.arange(32) / 32).sum() + out.aux["balance_loss"].sum(), (seen, out.aux)

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def on_one_device(rows: int, biases: bool = False) -> Any:
    model = model_of(biases)
    return value_and_gradients(model, random_params(model), *batch_of(rows))


def assert_equals_one_device(model: Model, shape: dict[str, int], rows: int) -> None:
    mesh, biases = make_mesh(shape), model.config.mlp_bias
    (_, (want, want_aux)), want_gradients = on_one_device(rows, biases)
    params = jax.device_put(random_params(model), model.shardings(mesh))
    with jax.set_mesh(mesh):
        (_, (got, aux)), gradients = value_and_gradients(model, params, *batch_of(rows))
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    for name in want_aux:
        np.testing.assert_allclose(aux[name], want_aux[name], rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.more_but("expert4-fsdp2")
@pytest.mark.parametrize("shape", MESHES, ids=ids)
def test_dropless_equals_one_device(shape: dict[str, int]) -> None:
    assert_equals_one_device(model_of(), shape, 8)


@pytest.mark.more_but("expert2-tensor2-fsdp2-8-0.0")
@pytest.mark.parametrize("factor", [0.0, 4.0])
@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("shape", [{"expert": 2, "tensor": 2, "fsdp": 2}, {"expert": 4, "data": 2}], ids=ids)
def test_biases_are_added_once(shape: dict[str, int], rows: int, factor: float) -> None:
    assert_equals_one_device(model_of(True, capacity_factor=factor), shape, rows)


@pytest.mark.more
def test_many_rows_equal_one_device() -> None:
    """More than columns: the experts' parts are gathered instead of the rows'."""
    assert_equals_one_device(model_of(), {"expert": 4, "fsdp": 2}, 64)


@pytest.mark.parametrize(("rows", "gathered"), [(8, False), (64, True)])
def test_parts_of_experts_are_gathered_for_many_rows(rows: int, gathered: bool) -> None:
    model, mesh = model_of(), make_mesh({"expert": 2, "fsdp": 4})
    given = jax.device_put(random_params(model), model.shardings(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(lambda p, t: model.apply(p, t).hidden).lower(given, batch_of(rows)[0]).compile().as_text()
    assert bool(re.search(r"f32\[4,32,24\]\S* all-gather\(", text)) == gathered


@pytest.mark.more_but("expert8")
@pytest.mark.parametrize("shape", MESHES[:3], ids=ids)
def test_exchanged_buffers_equal_one_device(shape: dict[str, int]) -> None:
    """Capacity for whatever may come: the rows go by all-to-all and none is dropped."""
    assert_equals_one_device(model_of(capacity_factor=4.0), shape, 8)


@pytest.mark.more
@pytest.mark.parametrize("factor", [0.0, 4.0])
def test_rows_that_cannot_be_split_stay_whole(factor: float) -> None:
    assert_equals_one_device(model_of(capacity_factor=factor), {"expert": 4, "data": 2}, 3)


def test_ragged_products_on_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerators run on each device."""
    monkeypatch.setattr("model.expert_parallel.expert_dispatch", lambda choice="ragged", devices=1: _ragged(devices))
    assert_equals_one_device(model_of(bias_rate=0.5), {"expert": 4, "fsdp": 2}, 8)


def _ragged(devices: int) -> str:
    return "expert_parallel" if devices > 1 else "ragged"


@pytest.mark.more_but("capacity")
@pytest.mark.parametrize("dispatch", ["dense", "capacity", "ragged"])
def test_other_dispatches_run_on_a_mesh(dispatch: str) -> None:
    assert_equals_one_device(model_of(dispatch=dispatch), {"expert": 4, "fsdp": 2}, 8)


def test_experts_stay_and_rows_move() -> None:
    """Buffers are exchanged by all-to-all; without a capacity rows are gathered and sums scattered."""
    mesh = make_mesh({"expert": 8})
    for factor, expected, other in ((1.0, "all-to-all", "reduce-scatter"), (0.0, "reduce-scatter", "all-to-all")):
        model = model_of(capacity_factor=factor)
        with using(parse_rules("embed=none")), jax.set_mesh(mesh):  # the look-up of tokens exchanges as well
            given = jax.device_put(random_params(model), model.shardings(mesh))
            text = jax.jit(lambda p, t, m=model: m.apply(p, t).hidden).lower(given, batch_of(8)[0]).compile().as_text()
        assert f"{expected}(" in text and f"{other}(" not in text


def test_drops_are_counted_over_the_mesh() -> None:
    """Each device drops what exceeds its own buffers: at most one row per device and expert here."""
    model, mesh = model_of(capacity_factor=0.5), make_mesh({"expert": 4, "data": 2})
    tokens, segments = batch_of(8)
    with jax.set_mesh(mesh):
        aux = jax.jit(model.apply)(random_params(model), tokens, segments=segments).aux
    load, dropped = np.asarray(aux["load"][0]), float(aux["dropped"][0])
    assert load.sum() == 2 * 45
    assert load.sum() - 8 * 8 <= dropped < load.sum()


def test_cached_decode_on_a_mesh() -> None:
    model, mesh = model_of(), make_mesh({"expert": 4, "tensor": 2})
    params, tokens = random_params(model), tokens_of(model, (4, 6))

    def run(params: Any, tokens: jax.Array) -> jax.Array:
        first = model.apply(params, tokens[:, :5], cache=model.init_cache(4, 8))
        return model.apply(params, tokens[:, 5:], cache=first.cache).hidden

    want = jax.jit(run)(params, tokens)
    with jax.set_mesh(mesh):
        got = jax.jit(run)(jax.device_put(params, model.shardings(mesh)), tokens)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_expert_choice_on_a_mesh() -> None:
    model, mesh = model_of(router="expert_choice", balance="none"), make_mesh({"expert": 2, "fsdp": 4})
    params, tokens = random_params(model), tokens_of(model, (8, 6))
    want = jax.jit(model.apply)(params, tokens)
    with jax.set_mesh(mesh):
        got = jax.jit(model.apply)(jax.device_put(params, model.shardings(mesh)), tokens)
    np.testing.assert_allclose(got.hidden, want.hidden, atol=2e-5)
    np.testing.assert_array_equal(got.aux["load"], want.aux["load"])


def test_experts_that_cannot_be_split_raise() -> None:
    model, mesh = tiny(ffn="moe", moe=MOE | dict(n_experts=6)), make_mesh({"expert": 4, "data": 2})
    with pytest.raises(ValueError, match="'experts' of size 6 cannot be split evenly"):
        model.shardings(mesh)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"6 experts cannot be split evenly .* axis is 4"):
        jax.eval_shape(model.apply, model.abstract(), jax.ShapeDtypeStruct((8, 4), jnp.int32))


def test_the_platform_chooses() -> None:
    assert expert_dispatch() == "capacity" and expert_dispatch("auto", 8) == "expert_parallel"
    assert expert_dispatch("dense", 8) == "dense"
