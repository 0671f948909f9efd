"""The gated delta rule in chunks against one column at a time, segments and carried state, and the mixer in a model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.draft import Draft, check_draft
from model import Model, build
from model.context import Context
from model.delta import GatedDelta, log_speeds, step_biases, unit
from model.delta_rule import Steps, gated_delta_rule, in_chunks, one_step, run_chunks, unit_inverse
from model.sharding import batch_sharding, make_mesh
from tests.model.common import apply, assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of
from tests.sampled import generate

AXES = Steps(2, 2, 3, 3, 3, 1)  # where columns stand
SIZES: dict[str, Any] = {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6, "conv": 3, "chunk": 4}


def model_of(**changes: Any) -> Model:
    return tiny(**{"mixer": "gated_delta", "positions": "none", "delta": SIZES} | changes)


def steps_of(length: int, strength: float, seed: int = 0, rows: int = 2) -> tuple[Steps, jax.Array]:
    """Random columns, a tenth of them beginnings, a tenth padding, whose decays are about `strength`; and a state."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    (B, K, G, D, V), S = (rows, 2, 2, 8, 6), length
    real = jnp.asarray(rng.uniform(size=(B, 1, 1, S)) > 0.1)
    decay, rate = -strength * jnp.exp(draw(B, K, G, S)), jax.nn.sigmoid(2 * draw(B, K, G, S))
    fresh = jnp.asarray(rng.uniform(size=(B, S)) < 0.1) & real[:, 0, 0]
    queries, keys = unit(draw(B, K, S, D)) * D**-0.5, unit(draw(B, K, S, D))
    decay, rate = (jnp.where(real, part, 0.0) for part in (decay, rate))
    return Steps(queries, keys, draw(B, K, G, S, V), decay, rate, fresh), draw(B, K, G, D, V)


@jax.jit
def one_by_one(steps: Steps, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`gated_delta_rule`, column by column."""
    columns = jax.tree.map(lambda x, axis: jnp.moveaxis(jnp.expand_dims(x, axis + 1), axis, 0), steps, AXES)
    end, y = jax.lax.scan(one_step, start, columns)
    return jnp.moveaxis(y[..., 0, :], 0, 3), end


together = jax.jit(gated_delta_rule, static_argnums=2)


def by_hand(steps: Steps, start: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in fp64: S <- e^g S, S <- S + k (beta (v - S'k))', S'q."""
    q, k, v, g, beta = (np.asarray(part, np.float64) for part in steps[:5])
    state, y = np.asarray(start, np.float64).copy(), np.zeros(v.shape)
    for b, head, group in np.ndindex(*v.shape[:3]):
        S = state[b, head, group]
        for t in range(v.shape[3]):
            S = np.zeros_like(S) if steps.fresh[b, t] else np.exp(g[b, head, group, t]) * S
            S = S + np.outer(k[b, head, t], beta[b, head, group, t] * (v[b, head, group, t] - S.T @ k[b, head, t]))
            y[b, head, group, t] = S.T @ q[b, head, t]
        state[b, head, group] = S
    return y, state


def assert_same(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance * max(1.0, float(np.abs(want).max())), rtol=0)


# The rule


@pytest.mark.more_but("0.02", "3.0")
@pytest.mark.parametrize("strength", [0.02, 0.5, 3.0, 30.0])
def test_a_column_is_the_definition(strength: float) -> None:
    steps, start = steps_of(23, strength)
    assert_same(one_by_one(steps, start), by_hand(steps, start), 1e-6)
    assert_same(together(steps, start, 8), by_hand(steps, start), 1e-6)


@pytest.mark.more_but("0", "1")
@pytest.mark.parametrize("case", range(6))
def test_chunks_equal_single_columns(case: int) -> None:
    """Outputs, the last state, and every gradient; of random lengths in chunks of random sizes."""
    rng = np.random.default_rng(case)
    length, chunk, strength = int(rng.integers(2, 90)), 2 ** int(rng.integers(0, 7)), 10 ** rng.uniform(-2, 1)
    steps, start = steps_of(length, strength, case)
    weight = jnp.asarray(rng.standard_normal((2, 2, 2, length, 6)), jnp.float32)

    def learnt(rule: Any) -> Any:
        def loss(parts: Any, start: jax.Array) -> tuple[jax.Array, Any]:
            y, end = rule(Steps(*parts, steps.fresh), start)
            return (y * weight).sum() + (end**2).sum(), (y, end)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(tuple(steps[:5]), start)

    want = learnt(one_by_one)
    assert_same(learnt(functools.partial(gated_delta_rule, chunk=chunk)), want)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want))


def test_the_state_goes_on_where_columns_are_cut() -> None:
    steps, start = steps_of(30, 0.3)
    cut = lambda a, b: jax.tree.map(lambda x, axis: jax.lax.slice_in_dim(x, a, b, axis=axis), steps, AXES)  # noqa: E731
    state, found = start, []
    for a, b in ((0, 1), (1, 9), (9, 10), (10, 30)):
        y, state = together(cut(a, b), state, 4)
        found.append(y)
    assert_same((jnp.concatenate(found, 3), state), one_by_one(steps, start))


def test_strong_and_weak_decays_in_one_chunk() -> None:
    """What is kept between two columns does not depend on what was lost long before them."""
    steps, start = steps_of(32, 0.01, rows=1)
    steps = steps._replace(decay=steps.decay.at[..., ::9].add(-3e4), fresh=jnp.zeros_like(steps.fresh))
    assert_same(together(steps, start, 32), by_hand(steps, start), 1e-6)


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_inverses(size: int) -> None:
    """Of random matrices, and of the worst there are: all keys alike, all rates 1."""
    rng = np.random.default_rng(0)
    keys = np.array(unit(rng.standard_normal((3, size, 8))))
    keys[0] = keys[0, :1]
    rates = rng.uniform(size=(3, size, 1))
    rates[0] = 1.0
    a = np.tril(rates * np.matmul(keys, keys.swapaxes(-1, -2)), -1).astype(np.float32)
    want = np.linalg.inv(np.eye(size) + a.astype(np.float64))
    np.testing.assert_allclose(jax.jit(unit_inverse)(jnp.asarray(a)), want, atol=1e-5)


def test_what_is_held_under_a_key_is_replaced() -> None:
    """Rate 1 and no decay: reading with a key gives the value that was last written under it."""
    one = lambda x: jnp.asarray(x, jnp.float32)[None, None]  # noqa: E731
    key = np.eye(3)[[0, 1, 0, 2]]
    value = one([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])[:, :, None]
    flat = jnp.zeros((1, 1, 1, 4))
    steps = Steps(one(np.eye(3)[[0, 0, 1, 0]]), one(key), value, flat, flat + 1, jnp.zeros((1, 4), bool))
    y, end = together(steps, jnp.zeros((1, 1, 1, 3, 2)), 4)
    np.testing.assert_allclose(y[0, 0, 0], [[1, 2], [1, 2], [3, 4], [5, 6]], atol=1e-6)
    np.testing.assert_allclose(end[0, 0, 0], [[5, 6], [3, 4], [7, 8]], atol=1e-6)


RINGS = [{"context": 4, "tensor": 2}, {"context": 8}, {"data": 2, "context": 2, "tensor": 2}, {"fsdp": 8}]


@pytest.mark.more_but("{'context': 4, 'tensor': 2}")
@pytest.mark.parametrize("mesh", RINGS, ids=str)
def test_columns_of_many_devices(mesh: dict[str, int]) -> None:
    """The outputs, the state that every device ends with, and the gradients."""
    steps, start = steps_of(48, 0.1, rows=8)

    def learnt(parts: Any, start: jax.Array) -> Any:
        def loss(parts: Any, start: jax.Array) -> tuple[jax.Array, Any]:
            y, end = gated_delta_rule(Steps(*parts, steps.fresh), start, 4)
            return (y**2).sum() + (end**3).sum(), (y, end)

        return jax.grad(loss, (0, 1), has_aux=True)(parts, start)

    want = jax.jit(learnt)(tuple(steps[:5]), start)
    with jax.set_mesh(make_mesh(mesh)):
        found = jax.jit(learnt)(tuple(steps[:5]), start)
    assert_same(found, want)


def test_no_scan_over_columns_remains() -> None:
    """Sixteen chunks of four columns: a loop of sixteen steps and none of sixty-four."""
    steps, start = steps_of(64, 0.1)
    text = str(jax.make_jaxpr(functools.partial(gated_delta_rule, chunk=4))(steps, start))
    assert "length=16" in text and "length=64" not in text
    chunks = in_chunks(steps, 4)
    assert chunks.scores.shape == (16, 2, 2, 2, 4, 4)
    assert run_chunks(chunks, start)[1].shape == (16, 2, 2, 2, 4, 6)


# Segments and carried state


def test_packing_and_padding_change_nothing() -> None:
    model = model_of()
    params, tokens = random_params(model), tokens_of(model, (1, 12))
    apart = [forward(model, params, part)[1] for part in (tokens[:, :5], tokens[:, 5:])]
    assert distance(forward(model, params, tokens)[1][:, 5:], apart[1]) > 0.01, "nothing to hide: the test is blind"
    # Padding on the left, in the middle of a segment, between two and on the right.
    segments = np.array([[0, 0, 3, 3, 0, 3, 3, 3, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0]])
    packed = np.full(segments.shape, 7)
    packed[0, segments[0] > 0] = tokens[0]
    got = forward(model, params, jnp.asarray(packed), None, jnp.asarray(segments))[1][:, segments[0] > 0]
    assert_close(got, jnp.concatenate(apart, 1))


@pytest.mark.parametrize("changes", [{}, {"mixer": ("gated_delta", "gqa"), "positions": "rope"}], ids=str)
def test_cached_decode_is_the_full_pass_with_left_padding(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    params, pads = random_params(model), (3, 0)
    batch = left_pad(np.asarray(tokens_of(model, (2, 9))), pads)
    full = forward(model, params, *batch)[0]
    for prefill in (1, 5):
        stepped = cached(model, params, *batch, prefill)
        for row, pad in enumerate(pads):
            assert_close(stepped[row, pad:], full[row, pad:])


def test_prefill_in_parts_with_segments_that_go_on_and_end() -> None:
    model = model_of()
    params, tokens = random_params(model), tokens_of(model, (3, 12))
    segments = jnp.asarray([[0, 1, 1, 1, 1, 1, 1, 1, 0, 2, 2, 2], [1] * 12, [1, 1, 1, 1, 2, 2, 0, 0, 0, 0, 2, 3]])
    full = forward(model, params, tokens, None, segments)[1]
    cache, found = model.init_cache(3, 12), []
    for start, stop in ((0, 4), (4, 5), (5, 9), (9, 12)):
        part = tokens[:, start:stop], jnp.zeros((3, stop - start), jnp.int32), segments[:, start:stop]
        out = apply(model, params, part[0], positions=part[1], segments=part[2], cache=cache)
        cache = out.cache
        found.append(out.hidden)
    real = np.asarray(segments) > 0
    assert_close(np.concatenate(found, 1)[real], np.asarray(full)[real])


def test_idle_rows_keep_their_state() -> None:
    model = model_of()
    params, tokens = random_params(model), tokens_of(model, (2, 6))
    start = apply(model, params, tokens, cache=model.init_cache(2, 8)).cache
    segments, positions = jnp.asarray([[0], [1]]), jnp.full((2, 1), 6)
    end = apply(model, params, tokens[:, :1], positions=positions, segments=segments, cache=start).cache
    for before, after in zip(jax.tree.leaves(start.layers), jax.tree.leaves(end.layers), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(np.asarray(start.layers[0]["state"] - end.layers[0]["state"]))[1].max() > 1e-3


@pytest.mark.more
def test_the_sampler_reseats_rows() -> None:
    model = model_of(mixer=("gated_delta", "gqa"), positions="rope")
    params = random_params(model)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]]
    options = dict(max_new_tokens=6, n=2, stop=(29, 33))
    few, all_ = (generate(model, params, prompts, jax.random.key(0), slots=n, **options) for n in (3, 0))
    np.testing.assert_array_equal(few.tokens, all_.tokens)
    tokens = jnp.asarray([[*prompts[1], *few.tokens[2][: few.lengths[2]]]])
    logps = jax.nn.log_softmax(forward(model, params, tokens)[0])[0, 4:-1]
    picked = np.take_along_axis(np.asarray(logps), np.asarray(tokens)[0, 5:, None], 1)[:, 0]
    np.testing.assert_allclose(few.logps[2][: few.lengths[2]], picked, atol=1e-4)


def test_drafts_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"drafts take wrong guesses back.*running state of mixer 'gated_delta' cannot"
    ):
        check_draft(model_of(mtp={"depth": 1}), Draft())


# The mixer in a model


def test_the_mixer_by_hand() -> None:
    """In fp64: convolved and activated channels, unit keys, decays and rates, the rule, and gated normed heads."""
    config = model_of().config
    p, ones = random_params(model_of())["layer_0"]["mixer"], jnp.ones((1, 7), jnp.int32)
    x, context = np.random.default_rng(4).standard_normal((1, 7, 32)), Context(ones, ones, ones, ones, {}, None)
    run = jax.jit(lambda p, x: GatedDelta(config).apply({"params": p}, x, context, None, None)[0])
    got = run(p, jnp.asarray(x, jnp.float32))
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    silu, both = (lambda x: x / (1 + np.exp(-x))), np.einsum("sd,dkm->skm", x[0], w["qkvz"])
    kernel = np.split(w["conv"], (16, 32), -1)
    channels = np.concatenate([part.reshape(3, 2, -1) for part in kernel], -1)
    padded = np.pad(both[..., :28], ((2, 0), (0, 0), (0, 0)))
    mixed = silu(sum(padded[tap : tap + 7] * channels[tap] for tap in range(3)))
    rates, steps = np.split(np.einsum("sd,dkm->skm", x[0], w["ba"]), 2, -1)
    heads = []
    for head in range(4):
        key, group, state = head // 2, head % 2, np.zeros((8, 6))
        q, k, v = np.split(mixed[:, key], (8, 16), -1)
        v = v[:, 6 * group : 6 * group + 6]
        q, k = (part / np.sqrt((part**2).sum(-1, keepdims=True) + 1e-6) for part in (q, k))
        read = []
        for t in range(7):
            step = np.log1p(np.exp(steps[t, key, group] + w["dt_bias"][head]))
            state = np.exp(-np.exp(w["a_log"][head]) * step) * state
            rate = 1 / (1 + np.exp(-rates[t, key, group]))
            state = state + np.outer(k[t], rate * (v[t] - state.T @ k[t]))
            read.append(state.T @ q[t] / np.sqrt(8))
        y = np.stack(read)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_eps) * w["norm"]["scale"]
        heads.append(y * silu(both[:, key, 28 + 6 * group : 34 + 6 * group]))
    want = np.einsum("hsv,hvd->sd", np.stack(heads), w["out"])
    np.testing.assert_allclose(got[0], want, atol=1e-5 * np.abs(want).max())


def test_parameters() -> None:
    mixer = model_of().abstract()["layer_0"]["mixer"]
    assert jax.tree.map(lambda leaf: leaf.shape, mixer) == {
        "qkvz": (32, 2, 8 + 8 + 12 + 12),
        "ba": (32, 2, 4),
        "conv": (3, 2 * (8 + 8 + 12)),
        "a_log": (4,),
        "dt_bias": (4,),
        "norm": {"scale": (6,)},
        "out": (4, 6, 32),
    }
    axes = model_of().axes()["layer_0"]["mixer"]
    assert axes["qkvz"] == ("embed", "heads", "head_dim") and axes["out"] == ("heads", "head_dim", "embed")
    plain = tiny(mixer="gated_delta").abstract()["layer_0"]["mixer"]  # 4 heads of 8
    assert plain["qkvz"].shape == (32, 4, 32) and plain["out"].shape == (4, 8, 32)


def test_how_decays_begin() -> None:
    speeds = np.exp(log_speeds(jax.random.key(0), (400,)))
    steps = np.log1p(np.exp(np.asarray(step_biases(jax.random.key(1), (400,)), np.float64)))
    assert 1 <= speeds.min() < 2 and 15 < speeds.max() <= 16
    assert 9.9e-4 <= steps.min() < 2e-3 and 0.08 < steps.max() <= 0.1001


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"key_heads": 4, "value_heads": 6}, "delta.value_heads=6 is no multiple of delta.key_heads=4"),
        ({"chunk": 48}, "delta.chunk=48 must be a power of two"),
        ({"conv": 0}, "delta.conv must be at least 1, found 0"),
        ({"key_dim": -1}, "delta.key_dim must be at least 0"),
        ({"heads": 3}, "unknown DeltaConfig key 'heads'"),
    ],
)
def test_sizes_that_do_not_fit(delta: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(mixer="gated_delta").config.to_dict() | {"delta": delta})


def loss_and_gradients(model: Model, params: Any, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, Any]:
    def loss(params: Any) -> jax.Array:
        logits = model.logits(params, model.apply(params, tokens, None, segments).hidden)
        return (jax.nn.logsumexp(logits, -1) * (segments > 0)).mean()

    return jax.value_and_grad(loss)(params)


def batch_of(model: Model) -> tuple[jax.Array, jax.Array]:
    segments = np.ones((8, 16), np.int32)
    segments[0, :3], segments[1, 6:] = 0, 2
    return tokens_of(model, (8, 16)), jnp.asarray(segments)


@pytest.mark.more_but("{'fsdp': 2, 'tensor': 2, 'context': 2}")
@pytest.mark.parametrize(
    "shape", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 2, "context": 2}, {"context": 8}], ids=str
)
def test_eight_devices_compute_what_one_does(shape: dict[str, int]) -> None:
    model = model_of(n_layers=1)
    params, batch, mesh = random_params(model), batch_of(model), make_mesh(shape)
    step = jax.jit(functools.partial(loss_and_gradients, model))
    want = step(params, *batch)
    placed = jax.device_put(params, model.shardings(mesh))
    with jax.set_mesh(mesh):
        got = step(placed, *jax.device_put(batch, batch_sharding(mesh)))
    for found, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)


@pytest.mark.more
def test_jit_remat_and_loops_change_nothing_and_bf16_little() -> None:
    model = model_of(n_layers=2)
    params, batch = random_params(model), batch_of(model)
    hidden = apply(model, params, batch[0], segments=batch[1]).hidden
    np.testing.assert_allclose(model.apply(params, batch[0], None, batch[1]).hidden, hidden, atol=2e-5)
    ways: list[dict[str, Any]] = [{}, {"remat": "full"}, {"layers": "scanned"}]
    plain, *others = (
        jax.jit(functools.partial(loss_and_gradients, tiny(**model.config.to_dict() | way)))(params, *batch)
        for way in ways
    )
    for other in others:
        for found, expected in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max() + 1e-7)
    half = apply(tiny(**model.config.to_dict() | {"dtype": "bfloat16"}), params, batch[0], segments=batch[1]).hidden
    assert half.dtype == jnp.bfloat16
    off = np.asarray(half.astype(jnp.float32) - hidden)[np.asarray(batch[1]) > 0]
    assert off.std() < 0.06 * float(hidden.std())
