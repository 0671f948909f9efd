"""Sharded equals single device, on eight virtual devices; and a mesh that does not fit says so."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from model import Model
from model.sharding import (
    MESH_AXES,
    batch_sharding,
    constrain,
    make_mesh,
    named_sharding,
    on_mesh,
    parse_rules,
    partition_spec,
    replicated,
    using,
)
from tests.model.common import random_params, tiny, tokens_of

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESHES = ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2})
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"n_layers": 1, "tied": False, "rope": {"kind": "llama3", "factor": 8.0, "original_length": 8}},
    "qwen2": {"qkv_bias": True, "window": (None, 3)},
    "qwen3": {"n_layers": 1, "qk_norm": True, "head_dim": 16, "remat": True},
    "gpt2": {
        "n_layers": 1,
        "ffn": "mlp",
        "norm_type": "layernorm",
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "positions": "learned",
    },
}


@functools.cache
def family(name: str) -> Model:
    return tiny(n_kv_heads=4, **FAMILIES[name])


def batch_of(model: Model) -> dict[str, jax.Array]:
    tokens = tokens_of(model, (8, 10))
    segments = np.ones(tokens.shape, np.int32)
    segments[0, :3], segments[1, 6:] = 0, 2
    return {"tokens": tokens, "segments": jnp.asarray(segments)}


def loss_and_gradients(model: Model, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    def loss(params: Any) -> jax.Array:
        hidden = model.apply(params, batch["tokens"], None, batch["segments"]).hidden
        log_probs = jax.nn.log_softmax(model.logits(params, hidden[:, :-1]))
        return -jnp.take_along_axis(log_probs, batch["tokens"][:, 1:, None], -1).mean()

    return jax.value_and_grad(loss)(params)


@functools.cache
def single_device(name: str) -> tuple[jax.Array, Any]:
    model = family(name)
    step = jax.jit(functools.partial(loss_and_gradients, model))
    return step(random_params(model), batch_of(model))


@pytest.mark.more_but("llama-fsdp2-tensor4")
@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()))
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_equal_single_device(name: str, shape: dict[str, int]) -> None:
    model, mesh = family(name), make_mesh(shape)
    shardings = model.shardings(mesh)
    params = jax.device_put(random_params(model), shardings)
    batch = jax.device_put(batch_of(model), batch_sharding(mesh))
    step = jax.jit(functools.partial(loss_and_gradients, model), out_shardings=(replicated(mesh), shardings))
    with jax.set_mesh(mesh):
        loss, gradients = step(params, batch)
    want_loss, want = single_device(name)
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    # A gradient that is zero in theory (the bias of the keys, without rope) is the rounding of the others' size.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
        scale = max(float(np.abs(expected).max()), 0.1 * largest)
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_large_parameter_is_split(name: str) -> None:
    """No matrix is held whole by a device of an fsdp x tensor mesh."""
    model, mesh = family(name), make_mesh({"fsdp": 2, "tensor": 4})
    shardings, leaves = model.shardings(mesh), model.abstract()
    whole = {
        jax.tree_util.keystr(path)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(leaves), jax.tree.leaves(shardings), strict=True
        )
        if leaf.size > 1000 and sharding.shard_shape(leaf.shape) == leaf.shape
    }
    assert not whole


def test_one_row_still_runs_on_a_mesh() -> None:
    """An activation axis that cannot be split stays whole: a batch of one on two data devices."""
    model, mesh = family("llama"), make_mesh({"data": 4, "tensor": 2})
    params, tokens = random_params(model), tokens_of(model, (1, 5))
    want = jax.jit(model.apply)(params, tokens).hidden
    with jax.set_mesh(mesh):
        got = jax.jit(model.apply)(jax.device_put(params, model.shardings(mesh)), tokens).hidden
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_cached_decode_on_a_mesh() -> None:
    model, mesh = family("qwen3"), make_mesh({"fsdp": 4, "tensor": 2})
    params, tokens = random_params(model), tokens_of(model, (4, 6))

    def run(params: Any, tokens: jax.Array) -> jax.Array:
        first = model.apply(params, tokens[:, :5], cache=model.init_cache(4, 8))
        return model.apply(params, tokens[:, 5:], cache=first.cache).hidden

    want = jax.jit(run)(params, tokens)
    with jax.set_mesh(mesh):
        got = jax.jit(run)(jax.device_put(params, model.shardings(mesh)), tokens)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_uneven_split_raises() -> None:
    model = tiny(n_kv_heads=2)
    words = "layer_0/mixer/k: axis 'kv_heads' of size 2 cannot be split evenly over tensor = 4 devices; .* are 2$"
    with pytest.raises(ValueError, match=words):
        model.shardings(make_mesh({"fsdp": 2, "tensor": 4}))
    with pytest.raises(ValueError, match=r"embed: axis 'vocab' of size 63 .* that divide 63 are 1 or 3"):
        tiny(vocab_size=63).shardings(make_mesh({"fsdp": 4, "tensor": 2}))


def test_other_rules() -> None:
    """They hold inside their context and in functions made there, wherever those run; traced programs follow."""
    mesh, seen = make_mesh({"fsdp": 4, "tensor": 2}), []

    @jax.jit
    def tables(x: jax.Array) -> jax.Array:
        seen.append(partition_spec(("embed", "mlp")))
        return x

    with using(parse_rules("embed = fsdp + data, mlp=none")):
        placed = on_mesh(mesh)(lambda: (tables(jnp.zeros(2)), jax.sharding.get_abstract_mesh().shape["tensor"]))
        tables(jnp.zeros(2))
        assert tiny().shardings(mesh)["layer_0"]["ffn"]["up"].spec == P(("fsdp", "data"), None)
    tables(jnp.zeros(2))
    tables(jnp.zeros(2))
    assert seen == [P(("fsdp", "data"), None), P(("fsdp", "expert"), "tensor")]
    with ThreadPoolExecutor() as pool:
        assert pool.submit(placed).result()[1] == 2
    assert seen[2:] == [P(("fsdp", "data"), None)]
    with pytest.raises(ValueError, match="both map to mesh axis 'tensor'"), using(parse_rules("embed=tensor")):
        tiny().shardings(mesh)


@pytest.mark.parametrize(
    ("text", "message"),
    [("embd=fsdp", "unknown sharding: logical axis 'embd'. Did you mean 'embed'"), ("mlp=tenso", "mesh axis of mlp")],
)
def test_rules_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rules(text)


@pytest.mark.parametrize(
    "names, expected",
    [
        (("vocab", "embed"), P("tensor", ("fsdp", "expert"))),
        (("embed", "heads", "head_dim"), P(("fsdp", "expert"), "tensor", None)),
        (("batch", "length", None), P(("data", "fsdp", "expert"), "context", None)),
        ((), P()),
    ],
)
def test_partition_spec(names: tuple[str | None, ...], expected: P) -> None:
    assert partition_spec(names) == expected


@pytest.mark.parametrize(
    "names, message",
    [
        (("vocab", "embd"), "unknown logical axis 'embd'. Did you mean 'embed'"),
        (("heads", "mlp"), "'heads' and 'mlp' .* both map to mesh axis 'tensor'"),
        (("batch", "embed"), "'batch' and 'embed' .* both map to mesh axis 'fsdp'"),
    ],
)
def test_bad_names_raise(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition_spec(names)
    with pytest.raises(ValueError, match=message):
        constrain(jnp.zeros((2, 2)), *names)


def test_make_mesh_fills_in() -> None:
    assert dict(make_mesh().shape) == dict.fromkeys(MESH_AXES, 1) | {"fsdp": 8}
    assert dict(make_mesh({"tensor": 2, "data": -1}).shape) == dict.fromkeys(MESH_AXES, 1) | {"data": 4, "tensor": 2}
    assert make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"tensr": 8}, "unknown mesh axis 'tensr'. Did you mean 'tensor'"),
        ({"fsdp": 3}, "does not multiply to the 8 devices present; fsdp=8 would do"),
        ({"fsdp": 4, "tensor": 4}, "present; fsdp=2 or tensor=2 would do"),
        ({"fsdp": 3, "tensor": 3}, "present; one axis of size -1"),
        ({"fsdp": -1, "tensor": 3}, "present; tensor=2 would do"),
        ({"fsdp": -1, "tensor": -1}, "at most one -1"),
        ({"fsdp": 0}, "must be positive"),
    ],
)
def test_make_mesh_errors(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_named_sharding_checks_only_with_a_shape() -> None:
    mesh = make_mesh()
    assert named_sharding(mesh, ("embed",)).spec == P(("fsdp", "expert"))
    with pytest.raises(ValueError, match="size 12 cannot be split evenly"):
        named_sharding(mesh, ("embed",), (12,))
