"""Every dispatch gives what running all experts on all rows gives, with its gradients, at any load."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import dispatch as module
from model.dispatch import DISPATCHES, Layout, from_rows, ranks, room_rows, to_rows
from model.ffn import Gating, gated
from model.moe import glu
from model.routing import Routes

N, E, K, D, F = 96, 8, 2, 16, 12
LOADS = ("even", "skewed", "one", "padded", "empty")


def routes_of(load: str, n: int = N, seed: int = 0) -> Routes:
    """Distinct experts per row: alike, mostly the first few, all the same, one in three rows nowhere, all nowhere."""
    rng = np.random.default_rng(seed)
    appeal = {"skewed": 2.0 ** -np.arange(E), "one": np.eye(E)[1] + 2 * np.eye(E)[5] + 1e-9}.get(load, np.ones(E))
    keys = np.log(appeal) + rng.gumbel(size=(n, E)) * (load != "one")
    experts = np.argsort(-keys, -1)[:, :K].astype(np.int32)
    gates = rng.uniform(0.1, 1.0, (n, K)).astype(np.float32)
    off = {"padded": np.arange(n) % 3 == 0, "empty": np.ones(n, bool)}.get(load, np.zeros(n, bool))
    experts[off], gates[off] = E, 0.0
    return Routes(jnp.asarray(experts), jnp.asarray(gates))


def weights_of(seed: int = 1) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    return {name: jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def rows_of(n: int = N, seed: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, D)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 6))
def value_and_gradients(
    name: str, factor: float, x: jax.Array, routes: Routes, weights: Any, dy: jax.Array, precision: str = "high"
) -> Any:
    """(y, dropped) and the gradients with respect to weights, rows and gates."""
    expert = functools.partial(glu, gating=Gating("silu"), precision=precision)

    def run(weights: Any, x: jax.Array, gates: jax.Array) -> Any:
        routed = Routes(routes.experts, gates)
        y, dropped = DISPATCHES[name](expert, weights, x, routed, routes.experts.size / E, factor)
        return (y * dy).sum(), (y, dropped)

    (_, out), gradients = jax.value_and_grad(run, (0, 1, 2), has_aux=True)(weights, x, routes.gates)
    return out, gradients


def assert_same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def by_hand(x: jax.Array, routes: Routes, weights: dict[str, jax.Array]) -> np.ndarray:
    """Row by row, in numpy."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    y = np.zeros(x.shape)
    for n, row in enumerate(np.asarray(x, np.float64)):
        for e, gate in zip(*map(np.asarray, (routes.experts[n], routes.gates[n])), strict=True):
            if e < E:
                before = row @ w["gate"][e]
                y[n] += gate * ((before / (1 + np.exp(-before)) * (row @ w["up"][e])) @ w["down"][e])
    return y


def test_gated_units_within_limits() -> None:
    gate, up = jnp.asarray([-9.0, -0.5, 2.0, 8.0]), jnp.asarray([-9.0, 0.5, 9.0, 1.0])
    low = lambda x: x / (1 + np.exp(-1.702 * x))  # noqa: E731
    want = [low(-9.0) * -6.0, low(-0.5) * 1.5, low(2.0) * 8.0, low(7.0) * 2.0]
    np.testing.assert_allclose(gated(gate, up, Gating("quick_gelu", 7.0, 1.0)), want, rtol=1e-5)
    np.testing.assert_allclose(gated(gate, up, Gating("silu")), jax.nn.silu(gate) * up, rtol=1e-6)


@pytest.mark.more_but("capacity-skewed", "ragged-padded")
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", DISPATCHES)
def test_biases_of_experts(name: str, load: str) -> None:
    """Row by row, in numpy; and what they learn."""
    rng, dy = np.random.default_rng(7), rows_of(seed=3)
    biases = {f"{n}_bias": jnp.asarray(rng.standard_normal((E, F)), jnp.float32) for n in ("gate", "up")}
    down = jnp.asarray(rng.standard_normal((E, D)), jnp.float32)
    weights, routes, x = weights_of(), routes_of(load), rows_of()
    (y, _), gradients = value_and_gradients(name, 0.0, x, routes, weights | biases | {"down_bias": down}, dy)
    w = {n: np.asarray(v, np.float64) for n, v in (weights | biases).items()}
    want, learnt = np.zeros(x.shape), np.zeros((E, D))
    for n, row in enumerate(np.asarray(x, np.float64)):
        for e, gate in zip(*map(np.asarray, (routes.experts[n], routes.gates[n])), strict=True):
            if e < E:
                before, up = row @ w["gate"][e] + w["gate_bias"][e], row @ w["up"][e] + w["up_bias"][e]
                want[n] += gate * ((before / (1 + np.exp(-before)) * up) @ w["down"][e] + np.asarray(down)[e])
                learnt[e] += gate * np.asarray(dy)[n]
    np.testing.assert_allclose(y, want, atol=3e-5)
    np.testing.assert_allclose(gradients[0]["down_bias"], learnt, atol=1e-4)
    same = value_and_gradients("dense", 0.0, x, routes, weights | biases | {"down_bias": down}, dy)
    assert_same(gradients, same[1])


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", DISPATCHES)
def test_output_is_the_sum_by_hand(name: str, load: str) -> None:
    routes, x = routes_of(load), rows_of()
    (y, dropped), _ = value_and_gradients(name, 0.0, x, routes, weights_of(), x)
    np.testing.assert_allclose(y, by_hand(x, routes, weights_of()), atol=2e-5)
    assert int(dropped) == 0


@pytest.mark.more_but("capacity-skewed", "capacity-padded", "ragged-padded")
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", ["capacity", "ragged"])
def test_gradients_equal_the_dense_ones(name: str, load: str) -> None:
    arguments = (rows_of(), routes_of(load), weights_of(), rows_of(seed=3))
    assert_same(value_and_gradients(name, 0.0, *arguments), value_and_gradients("dense", 0.0, *arguments))


def test_a_gradient_of_gates_is_right() -> None:
    """Of the oracle itself, against a difference."""
    arguments = (rows_of(), routes_of("padded"), weights_of(), rows_of(seed=3))
    x, routes, weights, dy = arguments
    gradient = value_and_gradients("dense", 0.0, *arguments)[1][2]
    y = by_hand(x, Routes(routes.experts, routes.gates.at[4, 1].add(1.0)), weights) - by_hand(x, routes, weights)
    assert float(gradient[4, 1]) == pytest.approx(float((y * np.asarray(dy)).sum()), rel=1e-4)


@pytest.mark.parametrize("load", ["skewed", "one"])
def test_uneven_loads_really_spill(load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above means something: without its blocks the buffered way loses rows."""
    room = room_rows(N, N * K / E, 0.0)
    assert int(ranks(routes_of(load).experts, E)[1].max()) > room
    monkeypatch.setattr(module, "_pick", lambda spill, i, w, x, gates: _empty_block(spill, i, w, x, gates))
    x, routes, weights = rows_of(), routes_of(load), weights_of()
    expert = functools.partial(glu, gating=Gating("silu"), precision="high")
    y, _ = jax.jit(lambda x: module.capacity(expert, weights, x, routes, N * K / E, 0.0))(x)
    assert np.abs(np.asarray(y) - by_hand(x, routes, weights)).max() > 0.1


def _empty_block(spill: Any, i: Any, weights: Any, x: jax.Array, gates: jax.Array) -> Any:
    nothing = jnp.full(spill.source.shape[1], gates.size)
    mine = jax.tree.map(lambda w: w[spill.owner[i]], weights)
    return nothing // gates.shape[1], nothing, (mine, jnp.zeros((nothing.size, D)), jnp.zeros(nothing.size))


@pytest.mark.parametrize("n", [1, 9])
def test_few_rows_fit_without_blocks(n: int) -> None:
    arguments = (rows_of(n), routes_of("one", n), weights_of(), rows_of(n, seed=3))
    assert_same(value_and_gradients("capacity", 0.0, *arguments), value_and_gradients("dense", 0.0, *arguments))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
@pytest.mark.parametrize("load", ["skewed", "padded"])
def test_capacity_drops_the_latest_rows_and_counts_them(load: str, factor: float) -> None:
    x, routes, weights = rows_of(), routes_of(load), weights_of()
    room = int(np.ceil(factor * N * K / E))
    experts, gates, taken, lost = np.array(routes.experts), np.array(routes.gates), np.zeros(E + 1, int), 0
    for n in range(N):
        for j in range(K):
            e = experts[n, j]
            taken[e] += 1
            if e < E and taken[e] > room:
                gates[n, j], lost = 0.0, lost + 1
    want = by_hand(x, Routes(experts, gates), weights)
    results = [value_and_gradients(name, factor, x, routes, weights, rows_of(seed=3)) for name in DISPATCHES]
    for (y, dropped), _ in results:
        np.testing.assert_allclose(y, want, atol=2e-5)
        assert int(dropped) == lost
    assert lost > 0 or load == "padded"
    for other in results[1:]:
        assert_same(other, results[0])


def test_gathers_are_each_others_transpose() -> None:
    """<to_rows x, r> = <x, from_rows r> with gates of one."""
    position = jnp.array([[3, 7], [0, 8], [5, 1]])
    source = jnp.full(8, 6).at[position.reshape(-1)].set(jnp.arange(6), mode="drop")
    layout, rng = Layout(source, position), np.random.default_rng(0)
    x, r = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4), (8, 4)))
    assert float((to_rows(x, layout) * r).sum()) == pytest.approx(
        float((x * from_rows(r, jnp.ones((3, 2)), layout)).sum()), rel=1e-5
    )
    np.testing.assert_allclose(
        jax.vjp(lambda x: to_rows(x, layout), x)[1](r)[0], from_rows(r, jnp.ones((3, 2)), layout)
    )


def test_ranks_count_earlier_rows() -> None:
    rank, load = ranks(jnp.array([[0, 2], [2, 3], [3, 3], [2, 0]]), 3)
    np.testing.assert_array_equal(
        np.where(np.array([[1, 1], [1, 0], [0, 0], [1, 1]]), rank, 0), [[0, 0], [1, 0], [0, 0], [2, 1]]
    )
    np.testing.assert_array_equal(load, [2, 0, 3])


@pytest.mark.parametrize("name", ["capacity", "ragged"])
def test_bf16_is_near_fp32(name: str) -> None:
    x, routes, weights, dy = rows_of(), routes_of("skewed"), weights_of(), rows_of(seed=3)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, weights))
    (y, _), gradients = value_and_gradients(name, 0.0, low[0], routes, low[1], dy)
    (want, _), wanted = value_and_gradients("dense", 0.0, x, routes, weights, dy)
    assert y.dtype == jnp.bfloat16
    for got, exact in zip(jax.tree.leaves((y, gradients)), jax.tree.leaves((want, wanted)), strict=True):
        assert float(jnp.abs(got - exact).max()) < 0.05 * float(jnp.abs(exact).max())


@pytest.mark.parametrize("precision", ["fp8", "fp8_tensor"])
def test_fp8_is_near_full_precision(precision: str) -> None:
    arguments = (rows_of(), routes_of("even"), weights_of(), rows_of(seed=3))
    (exact, _), (dexact, *_) = value_and_gradients("dense", 0.0, *arguments)
    for name in DISPATCHES:
        (y, _), (dweights, *_) = value_and_gradients(name, 0.0, *arguments, precision)
        error = float(jnp.abs(y - exact).max() / jnp.abs(exact).max())
        assert 1e-4 < error < 0.2
        assert float(jnp.abs(dweights["down"] - dexact["down"]).max() / jnp.abs(dexact["down"]).max()) < 0.3


@pytest.mark.parametrize("together", [32, 40, 95])
def test_sums_of_many_rows_are_taken_in_turn(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide the rows and blocks that do not; sums and gradients are the same."""
    routes, rows, dy = routes_of("padded"), rows_of(3 * N), rows_of(seed=4)
    layout = module.seats(routes.experts, ranks(routes.experts, E)[0], E, 3 * N // E)

    def sums(rows: jax.Array, gates: jax.Array) -> Any:
        y, pull = jax.vjp(lambda rows, gates: from_rows(rows, gates, layout), rows, gates)
        return y, pull(dy)

    whole = sums(rows, routes.gates)
    monkeypatch.setattr(module, "TOGETHER", together)
    loops = str(jax.make_jaxpr(sums)(rows, routes.gates)).count("scan[")
    assert loops == 2, "the sums and the gradients of gates are to go through blocks"
    assert_same(sums(rows, routes.gates), whole, 1e-6)
