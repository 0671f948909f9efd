"""Optimisers: schedule values, decay masks, Muon on stacked and fused weights, and wrong options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from train.optimizer import (
    ema_update,
    kind_of,
    make_optimizer,
    make_schedule,
    muon_dimensions,
    optimizer_config,
)

MUON: dict[str, Any] = {"name": "muon", "lr": 0.1, "clip_norm": 0}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def updates_of(optimizer: optax.GradientTransformation, params: Any, steps: int = 3) -> Any:
    """The parameters after a few updates with fixed gradients."""
    state = optimizer.init(params)
    gradients = jax.tree.map(lambda p: jnp.sin(7 * p) + 0.1, params)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_muon_on_stacked_weights_is_muon_on_each_slice() -> None:
    stacked = normal(0, 3, 6, 8)
    whole = updates_of(make_optimizer(MUON, axes={"w": ("experts", "expert_embed", "mlp")}), {"w": stacked})["w"]
    for i in range(3):
        one = updates_of(make_optimizer(MUON, axes={"w": ("embed", "mlp")}), {"w": stacked[i]})["w"]
        np.testing.assert_allclose(whole[i], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "shape", "matrix"),
    [
        (("embed", "heads", "head_dim"), (6, 2, 5), (6, 10)),
        (("heads", "head_dim", "embed"), (2, 5, 6), (10, 6)),
    ],
)
def test_muon_on_fused_weights_is_muon_on_the_matrix(names: Any, shape: Any, matrix: Any) -> None:
    fused = normal(1, *shape)
    found = updates_of(make_optimizer(MUON, axes={"w": names}), {"w": fused})["w"]
    flat = updates_of(make_optimizer(MUON, axes={"w": ("a", "b")}), {"w": fused.reshape(matrix)})["w"]
    np.testing.assert_allclose(found.reshape(matrix), flat, rtol=1e-4, atol=1e-5)


def test_muon_scales_its_update_to_the_given_rms() -> None:
    params = {"w": normal(2, 64, 64)}
    moved = updates_of(make_optimizer(MUON, axes={"w": ("embed", "mlp")}), params, steps=1)["w"] - params["w"]
    assert 0.5 < jnp.sqrt(jnp.mean(moved**2)) / (0.1 * 0.2) < 1.3


def test_muon_leaves_tables_vectors_and_routers_to_adamw() -> None:
    axes = {
        "embedding": ("vocab", "embed"),
        "norm": ("norm",),
        "bias": ("heads", "head_dim"),
        "router": ("embed", "choices"),
        "kernel": ("embed", "mlp"),
    }
    params = {name: normal(3, *(4,) * len(names)) for name, names in axes.items()}
    by_muon = updates_of(make_optimizer(MUON, axes=axes), params)
    by_adam = updates_of(make_optimizer(MUON | {"name": "adamw"}, axes=axes), params)
    same = {name: bool(jnp.allclose(by_muon[name], by_adam[name], atol=1e-6)) for name in axes}
    assert same == {name: name != "kernel" for name in axes}


def test_muon_in_a_nested_tree_under_jit() -> None:
    params = {"layers": {"0": {"q": normal(4, 6, 2, 3), "norm": normal(5, 6)}}, "embed": normal(6, 9, 6)}
    axes = {
        "layers": {"0": {"q": ("embed", "heads", "head_dim"), "norm": ("norm",)}},
        "embed": ("vocab", "embed"),
    }
    optimizer = make_optimizer(MUON, 10, axes=axes)
    state = jax.jit(optimizer.init)(params)
    updates, _ = jax.jit(optimizer.update)(params, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_muon_dimensions() -> None:
    assert muon_dimensions(("embed", "heads", "head_dim")) == ((0,), (1, 2))
    assert muon_dimensions(("heads", "head_dim", "embed")) == ((0, 1), (2,))
    assert muon_dimensions(("experts", "mlp", "embed")) == ((1,), (2,))
    assert muon_dimensions(("layers", "experts", "expert_embed", "mlp")) == ((2,), (3,))


def test_kinds() -> None:
    assert kind_of(("embed", "mlp")) == kind_of(("experts", "mlp", "embed")) == "matrix"
    assert kind_of(("vocab", "embed")) == kind_of(("learned_positions", "embed")) == "embedding"
    assert kind_of(("heads", "head_dim")) == kind_of(("embed", "choices")) == kind_of(("layers", "embed")) == "vector"


@pytest.mark.parametrize("named", [True, False])
def test_weight_decay_spares_norms_biases_and_embeddings(named: bool) -> None:
    axes = {
        "w": ("embed", "mlp"),
        "q_bias": ("heads", "head_dim"),
        "norm": ("norm",),
        "embed": ("vocab", "embed"),
    }
    params = {name: jnp.ones((2,) * len(names)) for name, names in axes.items()}
    optimizer = make_optimizer(lr=0.1, weight_decay=0.5, axes=axes if named else None)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {name: bool(jnp.any(update != 0)) for name, update in updates.items()} == {
        name: name == "w" for name in axes
    }
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_can_be_turned_on_for_all(name: str) -> None:
    axes = {"w": ("embed", "mlp"), "norm": ("norm",)}
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    optimizer = make_optimizer(name=name, lr=0.1, weight_decay=0.5, no_decay=(), axes=axes)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.05, rtol=1e-6)


def test_adamw_is_the_reference_adamw() -> None:
    params = {"w": normal(7, 4, 4)}
    mine = make_optimizer(lr=0.01, b1=0.8, b2=0.99, weight_decay=0.1, clip_norm=0)
    reference = optax.adamw(0.01, b1=0.8, b2=0.99, weight_decay=0.1)
    np.testing.assert_allclose(updates_of(mine, params)["w"], updates_of(reference, params)["w"], rtol=1e-6)


def test_clipping_bounds_the_global_norm() -> None:
    """Adam's first moment after one step is (1 - b1) times the clipped gradient."""
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    optimizer = make_optimizer(clip_norm=0.5)
    _, state = optimizer.update(jax.tree.map(lambda p: 100 * p, params), optimizer.init(params), params)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.1, 9: 1.0, 10: 1.0, 100: 1.0}),
        ("linear", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1, 500: 0.1}),
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1, 500: 0.1}),
        ("wsd", {0: 0.1, 10: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules(schedule: str, expected: dict[int, float]) -> None:
    rate = make_schedule({"lr": 2.0, "schedule": schedule, "warmup_steps": 10, "final_fraction": 0.1}, 100)
    for step, height in expected.items():
        np.testing.assert_allclose(rate(step), 2 * height, rtol=1e-5, err_msg=f"step {step}")


def test_the_first_update_is_not_void() -> None:
    assert make_schedule({"lr": 1.0, "warmup_steps": 4}, 10)(0) == 0.25


def test_ema_update() -> None:
    assert ema_update({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, 0.75)["w"] == 1.5


def test_config_dicts_and_keywords() -> None:
    config = ConfigDict({"lr": 0.5, "name": "adamw"}).lock()
    assert optimizer_config(config, lr=0.25).lr == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "Did you mean 'adamw'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"weigth_decay": 0.1}, "Did you mean 'weight_decay'"),
        ({"no_decay": ("vectors",)}, "Did you mean 'vector'"),
        ({"lr": -1.0}, "optimizer.lr must be at least 0"),
        ({"final_fraction": 2.0}, "final_fraction must lie in"),
        ({"warmup_steps": 50}, "does not fit into 10 steps"),
        ({"name": "muon"}, "pass axes"),
        ({"axes": {"w": "embed"}}, "must be a tuple"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(None, 10, **options)


def test_a_parameter_without_axes_is_named() -> None:
    optimizer = make_optimizer(weight_decay=0.1, axes={"kernel": ("embed", "mlp")})
    with pytest.raises(ValueError, match="Did you mean 'kernel'"):
        optimizer.init({"kernels": jnp.ones((2, 2))})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_is_not_trainable_stays_and_has_no_moments(name: str) -> None:
    """Not even decayed, and not counted where gradients are clipped."""
    axes = {"a": {"w": ("embed", "mlp")}, "b": {"w": ("embed", "mlp"), "norm": ("norm",)}}
    params = {"a": {"w": jnp.ones((2, 2))}, "b": {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}}
    options: dict[str, Any] = {"name": name, "lr": 0.1, "weight_decay": 0.5, "clip_norm": 0.5}
    optimizer = make_optimizer(axes=axes, trainable=("b/*",), no_decay=(), **options)
    after = updates_of(optimizer, params)
    np.testing.assert_array_equal(after["a"]["w"], params["a"]["w"])
    alone = updates_of(make_optimizer(axes={"b": axes["b"]}, no_decay=(), **options), {"b": params["b"]})
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), after["b"], alone["b"])
    arrays = [leaf for leaf in jax.tree.leaves(optimizer.init(params)) if leaf.ndim]
    assert sum(leaf.size for leaf in arrays) <= 2 * 6


def test_patterns_that_match_nothing_are_told() -> None:
    with pytest.raises(ValueError, match="no parameter matches exit_gate/\\*, head: nothing would learn"):
        make_optimizer(trainable=("exit_gate/*", "head")).init({"w": jnp.ones(2)})
