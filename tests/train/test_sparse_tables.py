"""Row-sparse gradients against dense ones, the update of the rows against its rule, and both inside the step."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model import Model
from model.lm import Params
from model.peer.banks import table_rows
from model.sharding import batch_sharding, make_mesh, replicated
from settings.optimizer import OptimizerConfig
from tests.model.common import random_params, tiny
from train import sparse_tables
from train.accumulate import UpdatePlan
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer
from train.sparse_tables import (
    TableState,
    apply_rows,
    finite,
    group,
    join,
    make_taps,
    sparse_tables_of,
    split,
    table_states,
    update,
)
from train.state import TrainState, new_state
from train.step import make_step

SMALL = {"n_experts": 16, "heads": 2, "top_k": 3, "key_dim": 12}
HYPER = OptimizerConfig(lr=1e-2, b2=0.9, eps=1e-6)
VARIANTS: dict[str, dict[str, Any]] = {
    "two layers": {"n_layers": 2},
    "chunks, remat": {"remat": True, "peer": SMALL | {"chunk": 7}},
    "tables per head": {"peer": SMALL | {"separate": True, "gate": "sigmoid", "query_norm": "none"}},
    "bf16": {"dtype": "bfloat16"},
}


def small(**changes: Any) -> Model:
    return tiny(**{"n_layers": 1, "ffn": "peer", "peer": SMALL, "d_model": 16, "n_heads": 2} | changes)


@functools.cache
def params_of(model: Model) -> Params:
    """Random parameters whose running variances are positive."""
    positive = lambda path, leaf: jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(positive, random_params(model))


def batch_of(shape: tuple[int, int] = (4, 6)) -> TokenRows:
    """Rows of which the second half has padding."""
    tokens = jnp.asarray(np.random.default_rng(3).integers(1, 64, shape), jnp.int32)
    segments = jnp.ones(shape, jnp.int32).at[shape[0] // 2 :, 4:].set(0)
    positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    return TokenRows(tokens=tokens, mask=segments.astype(jnp.float32), positions=positions, segments=segments)


def scattered(taps: dict[str, jax.Array], n: int) -> dict[str, np.ndarray]:
    """The dense gradients [N, D] that a tap's gradient stands for."""
    tap, found = {k: np.asarray(v, np.float64) for k, v in taps.items()}, {}
    for name, vectors in (("down", "inputs"), ("up", "outputs")):
        found[name] = np.zeros((n, tap[vectors].shape[-1]))
        terms = tap[name][..., None] * tap[vectors][:, None]
        np.add.at(found[name], tap["indices"].astype(int), terms)
    return found


@pytest.mark.more_but("tables per head")
@pytest.mark.parametrize("variant", VARIANTS)
def test_taps_carry_the_dense_gradient(variant: str) -> None:
    model = small(**VARIANTS[variant])
    params, batch = params_of(model), batch_of()
    objective = sft_objective(model)

    @jax.jit
    def dense(params: Params) -> Params:
        return jax.grad(lambda p: objective(p, batch, jax.random.key(0))[0])(params)

    @jax.jit
    def sparse(params: Params) -> tuple[Params, Params]:
        rest, tables = split(params, model.axes())
        whole = lambda rest, taps: join(rest, tables) | {"taps": taps}  # noqa: E731
        loss = lambda rest, taps: objective(whole(rest, taps), batch, jax.random.key(0))[0]  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(rest, make_taps(model, tables, batch.tokens.size))

    want_rest, want = split(dense(params), model.axes())
    got_rest, taps = sparse(params)
    tolerance = 0.02 if variant == "bf16" else 1e-4
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max() + 1e-12)  # noqa: E731
    jax.tree.map(close, *(jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (got_rest, want_rest)))
    assert sorted(taps) == sorted(want)
    for layer, tables in want.items():
        tap = taps[layer]["ffn"]
        assert len(np.unique(tap["indices"])) < tap["indices"].size
        for name, gradient in scattered(tap, table_rows(model.config)).items():
            close(gradient, np.asarray(tables["ffn"][name], np.float64))
    assert finite(taps)


def reference(
    table: np.ndarray, second: np.ndarray, count: np.ndarray, gradient: np.ndarray, rate: float
) -> tuple[np.ndarray, ...]:
    """The rule of `update`, on every row of a dense gradient, float64."""
    square = (gradient**2).mean(-1)
    moved = square > 0
    count = count + moved
    second = np.where(moved, HYPER.b2 * second + (1 - HYPER.b2) * square, second)
    root = np.sqrt(second / np.where(moved, 1 - HYPER.b2**count, 1))
    return np.where(moved[:, None], table - rate * gradient / (root + HYPER.eps)[:, None], table), second, count


@pytest.mark.parametrize(("block", "pairs"), [(4096, 4096), (4, 3), (3, 16)])
def test_rows_follow_the_rule(block: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_tables, "ROWS", block)
    monkeypatch.setattr(sparse_tables, "PAIRS", pairs)
    rng, (n, width, tokens, k) = np.random.default_rng(0), (32, 8, 9, 4)
    table = jnp.asarray(rng.standard_normal((n, width)), jnp.float32)
    state, want = table_states(table), (np.asarray(table, np.float64), np.zeros(n), np.zeros(n))
    step = jax.jit(lambda table, state, indices, *rest: update(table, state, group(indices, n), *rest, 0.01, HYPER))
    untouched = np.ones(n, bool)
    for _ in range(3):
        # Half of all pairs meet in row 7, so that it spans several blocks of pairs; rows from 20 are never used.
        indices = np.where(rng.random((tokens, k)) < 0.5, 7, rng.integers(0, 20, (tokens, k)))
        weights, vectors = rng.standard_normal((tokens, k)), rng.standard_normal((tokens, width))
        gradient = np.zeros((n, width))
        np.add.at(gradient, indices, weights[..., None] * vectors[:, None])
        untouched &= ~np.isin(np.arange(n), indices)
        values = (jnp.asarray(x, jnp.float32) for x in (weights, vectors))
        old, (table, state) = table, step(table, state, jnp.asarray(indices.reshape(-1), jnp.int32), *values)
        want = reference(*want, gradient, 0.01)
        np.testing.assert_array_equal(np.asarray(table)[untouched], np.asarray(old)[untouched])
    for got, expected in zip((table, state.second, state.count), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert untouched.sum() >= 12 and not np.asarray(state.count)[untouched].any()


def test_rows_without_a_usable_gradient_stay() -> None:
    table, vectors = jnp.ones((9, 4)), jnp.ones((3, 4)).at[2].set(jnp.inf)
    indices, weights = jnp.array([[1, 2], [3, 3], [4, 5]]), jnp.array([[1.0, 0.0], [1.0, -1.0], [1.0, 0.0]])
    run = jax.jit(
        lambda rate: update(table, table_states(table), group(indices.reshape(-1), 9), weights, vectors, rate, HYPER)
    )
    new, state = run(jnp.float32(0.1))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(new != table).any(-1)), [1])
    np.testing.assert_array_equal(np.flatnonzero(state.count), [1])
    still, state = run(jnp.float32(jnp.nan))
    np.testing.assert_array_equal(still, table)
    assert not state.count.any() and not state.second.any()


def test_split_and_join_are_inverse() -> None:
    model = small(n_layers=2, ffn=("glu", "peer"))
    params = params_of(model)
    rest, tables = split(params, model.axes())
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tables)} == {"down", "up"}
    assert "down" in rest["layer_0"]["ffn"]  # that of a dense layer, which is a matrix
    jax.tree.map(np.testing.assert_array_equal, join(rest, tables), params)


def training(model: Model, micro_batch: int | None = None, **options: Any) -> tuple[TrainState, Any]:
    """A first state and the step that trains tables by rows."""
    config = OptimizerConfig(**{"lr": 0.03, "clip_norm": 0.0} | options)
    by_rows = sparse_tables_of(model, config, 10)
    optimizer = make_optimizer(**{"lr": 0.03, "clip_norm": 0.0} | options, axes=model.axes())
    state = new_state(jax.tree.map(jnp.copy, params_of(model)), optimizer, 0, rows=by_rows)
    return state, make_step(sft_objective(model), optimizer, plan=UpdatePlan(micro_batch), rows=by_rows)


def test_the_step_trains_tables_without_dense_moments() -> None:
    model = small(peer=SMALL | {"query_norm": "layer"})
    state, step = training(model)
    tables = [x for x in jax.tree.leaves(state.optimizer) if x.shape == (16, 16)]
    assert not tables
    assert {x.shape for x in jax.tree.leaves(state.rows)} == {(16,)}
    before, losses = jax.tree.map(np.asarray, state.params), []
    for _ in range(8):
        state, metrics = step(state, batch_of())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 1
    for name in ("down", "up"):
        assert not np.array_equal(state.params["layer_0"]["ffn"][name], before["layer_0"]["ffn"][name])
    assert not metrics["skipped"]


@pytest.mark.more_but("2")
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_step_uses_the_gradient_of_the_mean(micro_batch: int | None) -> None:
    model = small(peer=SMALL | {"query_norm": "layer"})
    objective, params = sft_objective(model), params_of(model)

    @jax.jit
    def mean_gradient(params: Params) -> Params:
        total = lambda params: objective(params, batch_of(), jax.random.key(0))[:2]  # noqa: E731
        (_, count), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return jax.tree.map(lambda g: g / count, gradient["layer_0"]["ffn"])

    gradient = mean_gradient(params)
    state, step = training(model, micro_batch, b2=0.9)
    state, _ = step(state, batch_of())
    for name in ("down", "up"):
        want = 0.1 * (np.asarray(gradient[name]) ** 2).mean(-1)
        np.testing.assert_allclose(state.rows["layer_0"]["ffn"][name].second, want, rtol=2e-3, atol=1e-9)
        moved = np.asarray(state.params["layer_0"]["ffn"][name] - params["layer_0"]["ffn"][name])
        root = np.sqrt(want / 0.1)[:, None]
        expected = -0.03 * gradient[name] / np.where(root > 0, root, 1)
        np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_a_bad_batch_moves_no_row() -> None:
    model = small()
    state, step = training(model)
    before = jax.tree.map(np.asarray, (state.params["layer_0"]["ffn"], state.rows))
    batch = batch_of()
    state, metrics = step(state, batch.replace(mask=batch.mask.at[0, 2].set(jnp.nan)))
    assert metrics["skipped"] == 1
    after = jax.tree.map(np.asarray, (state.params["layer_0"]["ffn"], state.rows))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("fine", [True, False])
def test_rows_move_only_when_the_step_is_fine(fine: bool) -> None:
    model = small()
    tables = split(params_of(model), model.axes())[1]
    taps = jax.tree.map(jnp.ones_like, make_taps(model, tables, 4))
    common = {"count": 1.0, "rate": jnp.float32(0.1), "hyperparameters": HYPER}
    moved, state = apply_rows(tables, table_states(tables), taps, model=model.config, fine=jnp.array(fine), **common)
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(tables), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(np.asarray(new != old).any(-1)), [1] if fine else [])
    assert all(leaf.sum() == fine for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "count" in str(path))


@pytest.mark.more
def test_devices_move_rows_like_one() -> None:
    model = small(peer=SMALL | {"n_experts": 144})
    params, batch = params_of(model), batch_of((8, 6))

    def once(params: Params, batch: Any) -> Any:
        rest, tables = split(params, model.axes())
        whole = lambda taps: join(rest, tables) | {"taps": taps}  # noqa: E731
        loss = lambda taps: sft_objective(model)(whole(taps), batch, jax.random.key(0))[0]  # noqa: E731
        taps = jax.grad(loss)(make_taps(model, tables, batch.tokens.size))
        common = {"count": 10.0, "rate": jnp.float32(0.1), "fine": finite(taps), "hyperparameters": HYPER}
        return apply_rows(tables, table_states(tables), taps, model=model.config, **common)

    want = jax.jit(once)(params, batch)
    mesh = make_mesh({"data": 2, "fsdp": 2, "expert": 2})
    with jax.set_mesh(mesh):
        laid = jax.device_put(params, model.shardings(mesh)), jax.device_put(batch, batch_sharding(mesh))
        compiled = jax.jit(once).lower(*laid).compile()
        got = jax.device_put(compiled(*laid), replicated(mesh))
    assert float(want[1]["layer_0"]["ffn"]["up"].count.sum()) > 8
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)
    gathered = re.findall(r"f32\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    sizes = [tuple(map(int, shape.split(","))) for shape in gathered]
    assert not [s for s in sizes if s[0] == 144 and len(s) == 2], "a table was gathered"
    assert not [s for s in sizes if s[1:] == (2, 12)], "the scores of all keys were gathered"


def test_a_tap_serves_one_call_of_one_size() -> None:
    model = small()
    params, batch = params_of(model), batch_of()
    tables = split(params, model.axes())[1]
    with pytest.raises(ValueError, match="made for 23 tokens, but the layer sees 24"):
        model.apply(params | {"taps": make_taps(model, tables, 23)}, batch.tokens)

    def twice(taps: Params) -> jax.Array:
        call = lambda: model.apply(params | {"taps": taps}, batch.tokens).hidden.sum()  # noqa: E731
        return call() + call()

    assert not finite(jax.jit(jax.grad(twice))(make_taps(model, tables, 24)))


def test_models_without_tables_and_dense_training_have_no_rows() -> None:
    assert sparse_tables_of(tiny(), HYPER, 10) is None
    assert sparse_tables_of(small(), OptimizerConfig(tables="dense"), 10) is None
    assert isinstance(table_states(jnp.zeros((3, 2))), TableState)
