"""Linear maps over a mesh give what one device gives, and move what is smaller."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from model.linear import linear
from model.remat import rematerialised
from model.sharding import activation_spec, make_mesh, parse_rules, using

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

K, N, F = 48, 96, 64
MESHES: list[dict[str, int]] = [
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"expert": 4, "fsdp": 2},
    {"context": 4, "data": 2},
    {"data": 2, "fsdp": 2, "context": 2},
]
Arrays = tuple[jax.Array, ...]


def kernels(seed: int = 0) -> Arrays:
    """Into a feed-forward's width and back out of it."""
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (K, N)) / K**0.5, jax.random.normal(keys[1], (N, K)) / N**0.5


def two(weights: Arrays, x: jax.Array) -> jax.Array:
    """x [B, S, K] -> [B, S, K], through a kernel that is split by rows and one that is split by columns."""
    hidden = jax.nn.silu(linear(x, weights[0], ("embed", "mlp"), "high"))
    return linear(hidden, weights[1], ("mlp", "embed"), "high")


def value_and_gradients(x: jax.Array) -> Any:
    loss = lambda weights, x: (two(weights, x) * jnp.arange(K)).sum()  # noqa: E731
    return two(kernels(), x), jax.grad(loss, (0, 1))(kernels(), x)


def on(mesh: dict[str, int], function: Any, *args: Any) -> Any:
    with jax.set_mesh(make_mesh(mesh)):
        return jax.jit(function)(*args)


def close(found: Any, expected: Any) -> None:
    """Equal to 1e-5 of the largest."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), found, expected)


@pytest.mark.more_but("{'fsdp': 8}-few", "{'expert': 4, 'fsdp': 2}-many")
@pytest.mark.parametrize("rows", [(8, 1), (8, 16), (3, 16)], ids=["few", "many", "uneven"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_gives_what_one_device_gives(mesh: dict[str, int], rows: tuple[int, int]) -> None:
    x = jax.random.normal(jax.random.key(1), (*rows, K))
    close(on(mesh, value_and_gradients, x), value_and_gradients(x))


def test_quantised_blocks_are_not_cut() -> None:
    x = jax.random.normal(jax.random.key(1), (8, 4, K))
    up = lambda x: linear(x, kernels()[0], ("embed", "mlp"), "fp8")  # noqa: E731
    close(on({"fsdp": 4, "tensor": 2}, up, x), up(x))


def placed(x: jax.Array, mesh: dict[str, int]) -> tuple[Any, Arrays, jax.Array]:
    """The mesh, and kernels and rows as they lie on it."""
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        names = (("embed", "mlp"), ("mlp", "embed"), ("batch", "length", None))
        specs = [activation_spec(axes, a.shape) for axes, a in zip(names, (*kernels(), x), strict=True)]
    up, down, x = (
        jax.device_put(a, NamedSharding(devices, spec)) for a, spec in zip((*kernels(), x), specs, strict=True)
    )
    return devices, (up, down), x


def messages(function: Any, mesh: dict[str, int], rows: int) -> dict[str, list[int]]:
    """The sizes of what each kind of collective gives, in the program compiled for this mesh."""
    devices, weights, x = placed(jnp.ones((rows, 1, K)), mesh)
    with jax.set_mesh(devices):
        text = jax.jit(function).lower(weights, x).compile().as_text()
    found: dict[str, list[int]] = {}
    for shape, kind in re.findall(r" = f32\[([\d,]*)\]\S* (all-\w+|reduce-scatter)(?:-start)?\(", text):
        found.setdefault(kind, []).append(int(np.prod([int(n) for n in shape.split(",") if n])))
    return found


def test_many_rows_gather_the_kernel_and_sum_its_gradient_in_parts() -> None:
    loss = lambda weights, x: two(weights, x).sum()  # noqa: E731
    found = messages(jax.value_and_grad(loss), {"fsdp": 8}, 8 * F)
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce"} and found["all-reduce"] == [1], found
    assert sorted(found["reduce-scatter"]) == [K * N // 8] * 2
    assert sorted(found["all-gather"]) == [K * N] * 2


def test_of_few_rows_the_kernel_stays() -> None:
    found = messages(two, {"fsdp": 8}, 8)
    assert max(size for sizes in found.values() for size in sizes) <= 8 * N < K * N


def test_the_gathered_kernel_is_not_kept_for_the_backward_pass() -> None:
    def gathers(policy: str | None) -> int:
        devices, weights, x = placed(jnp.ones((8 * F, 1, K)), {"fsdp": 8})
        with jax.set_mesh(devices):
            function = rematerialised(two, policy)
            text = str(jax.make_jaxpr(lambda weights, x: jax.vjp(function, weights, x)[1](x))(weights, x))
        return text.count("all_gather[")

    assert [gathers(policy) for policy in (None, "none", "dots", "full")] == [2, 4, 4, 4]


def test_other_rules_split_other_axes() -> None:
    x = jax.random.normal(jax.random.key(1), (8, 16, K))
    with using(parse_rules("embed=fsdp+data,mlp=none")):
        found = on({"data": 2, "fsdp": 4}, value_and_gradients, x)
    close(found, value_and_gradients(x))


def test_few_rows_are_summed_in_full_precision() -> None:
    """Parts of bf16 products, rounded one by one, would not add up to the product."""
    x = jax.random.normal(jax.random.key(1), (8, 1, K), jnp.bfloat16)
    up = lambda x: linear(x, kernels()[0], ("embed", "mlp"), "high")  # noqa: E731
    found = on({"fsdp": 8}, up, x)
    assert found.dtype == jnp.bfloat16
    exact = x.astype(jnp.float32) @ kernels()[0].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(*(a.astype(jnp.float32) for a in (found, exact.astype(jnp.bfloat16))))
