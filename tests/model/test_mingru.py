"""minGRU and minLSTM: the scans against a loop, the gates, segments, carried state, and the module in a model."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, ModelConfig
from model.context import Context
from model.convolution import causal_convolution
from model.mingru import (
    MinRNN,
    gate_logits,
    hidden_states,
    log_positive,
    positive,
    rnn_state,
)
from model.recurrence import linear_recurrence, log_recurrence
from model.sharding import batch_sharding, make_mesh
from tests.model.common import apply, assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of
from tests.sampled import generate

linear = jax.jit(linear_recurrence, static_argnums=3)
logarithmic = jax.jit(log_recurrence, static_argnums=3)

CELLS = {"gru": "mingru", "lstm": "minlstm"}
SCANS = ("loop", "associative")
EVERYTHING = {"expansion": 1.5, "conv": 3, "learned_start": True, "bias": True, "forget_bias": 1.0}


def model_of(cell: str = "gru", **rnn: Any) -> Model:
    return tiny(mixer=CELLS[cell], positions="none", rnn=rnn)


def coefficients(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Decays in (0, 1), positive inputs and a positive start, fp32."""
    rng = np.random.default_rng(seed)
    a, b = 1 / (1 + np.exp(-2 * rng.standard_normal(shape))), np.exp(rng.standard_normal(shape))
    return tuple(x.astype(np.float32) for x in (a, b, np.exp(rng.standard_normal((shape[0], shape[2])))))


def looped(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The recurrence as it is written down, in fp64."""
    h, rows = start.astype(np.float64), []
    for t in range(a.shape[1]):
        h = a[:, t].astype(np.float64) * h + b[:, t]
        rows.append(h)
    return np.stack(rows, 1)


def apply_mixer(
    params: Any, cell: str, config: ModelConfig, x: jax.Array, segments: jax.Array, state: Any = None
) -> Any:
    """The mixer alone: (y, new state)."""
    context = Context(segments, segments, segments, segments, {}, None)
    return MinRNN(config, cell).apply({"params": params}, x, context, jnp.ones(()), state)


run = jax.jit(apply_mixer, static_argnums=(1, 2))


# The scans


@pytest.mark.more_but(
    "linear_recurrence-loop-{'context': 4, 'data': 2}", "log_recurrence-loop-{'context': 4, 'data': 2}"
)
@pytest.mark.parametrize("mesh", [{"context": 4, "data": 2}, {"context": 2, "tensor": 2, "fsdp": 2}], ids=str)
@pytest.mark.parametrize("implementation", ["loop", "associative"])
@pytest.mark.parametrize("recurrence", [linear_recurrence, log_recurrence])
def test_columns_of_many_devices(recurrence: Any, implementation: str, mesh: dict[str, int]) -> None:
    """What a device starts with is what all columns before its own leave, segments that forget it included."""
    rng = np.random.default_rng(0)
    a, b, start = (jnp.asarray(rng.uniform(0.1, 1, shape), jnp.float32) for shape in ((2, 24, 8), (2, 24, 8), (2, 8)))
    a = a.at[:, 9].set(0.0)
    given = (a, b, start) if recurrence is linear_recurrence else (jnp.log(a), jnp.log(b), jnp.log(start))
    weights = jnp.asarray(rng.standard_normal(a.shape), jnp.float32)
    loss = lambda *given: (weights * recurrence(*given, implementation)).sum()  # noqa: E731
    learn = jax.value_and_grad(lambda *given: loss(*given), (0, 1, 2))
    wanted = jax.jit(learn)(*given)
    with jax.set_mesh(make_mesh(mesh)):
        found = jax.jit(lambda *given: learn(*given))(*given)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", SCANS)
def test_linear_scan_is_the_loop_at_4096_steps(implementation: str) -> None:
    a, b, start = coefficients((2, 4096, 3))
    want = looped(a, b, start)
    np.testing.assert_allclose(linear(a, b, start, implementation), want, rtol=3e-6)
    half = linear(a[:, :2048], b[:, :2048], start, implementation)
    rest = linear(a[:, 2048:], b[:, 2048:], half[:, -1], implementation)
    np.testing.assert_allclose(np.concatenate([half, rest], 1), want, rtol=3e-6)


@pytest.mark.parametrize("implementation", SCANS)
def test_log_scan_is_the_loop_at_4096_steps(implementation: str) -> None:
    a, b, start = coefficients((2, 4096, 3))
    want = looped(a, b, start)
    whole = np.exp(logarithmic(*map(np.log, (a, b, start)), implementation))
    np.testing.assert_allclose(whole, want, rtol=3e-6)
    half = logarithmic(np.log(a[:, :2048]), np.log(b[:, :2048]), np.log(start), implementation)
    rest = logarithmic(np.log(a[:, 2048:]), np.log(b[:, 2048:]), half[:, -1], implementation)
    np.testing.assert_allclose(np.exp(np.concatenate([half, rest], 1)), want, rtol=3e-6)


@pytest.mark.more_but("260-260-float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("columns", "segments"), [(260, 1), (260, 20), (260, 260), (2080, 100)])
def test_the_ways_agree_however_many_segments_a_row_has(columns: int, segments: int, dtype: str) -> None:
    """The first row's first segment starts in column 0, the second's goes on from the state that is carried in."""
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.standard_normal((2, columns, 3)), dtype) for _ in range(3)]
    fresh = np.zeros((2, columns), bool)
    fresh[:, np.linspace(0, columns - 1, segments).astype(int)] = True
    fresh[1, 0] = False
    real = rng.random((2, columns)) < 0.9
    start = jnp.asarray(rng.uniform(0.5, 2, (2, 3)), jnp.float32)
    found = {way: learnt(*parts, start, fresh, real, *way) for way in itertools.product(("linear", "log"), SCANS)}
    (_, want), gradients = found["linear", "loop"]
    for (_, h), learned in found.values():
        np.testing.assert_allclose(h, want, atol=1e-6, rtol=0)
        for got, expected in zip(learned, gradients, strict=True):
            assert np.isfinite(got.astype(jnp.float32)).all()
            rtol = 1e-5 if expected.dtype == jnp.float32 else 1e-2  # of bf16, neighbours are 0.8 % apart
            np.testing.assert_allclose(got.astype(jnp.float32), expected.astype(jnp.float32), rtol=rtol, atol=rtol)


@functools.partial(jax.jit, static_argnums=(6, 7))
def learnt(
    candidate: jax.Array,
    f: jax.Array,
    i: jax.Array,
    start: jax.Array,
    fresh: jax.Array,
    real: jax.Array,
    space: str,
    implementation: str,
) -> Any:
    """The states that minLSTM passes through, and the gradients of the sum of their squares."""

    def total(candidate: jax.Array, f: jax.Array, i: jax.Array, start: jax.Array) -> Any:
        h = hidden_states(candidate, gate_logits("lstm", [f, i]), space, start, fresh, real, jnp.zeros(3))
        return (h**2).sum(), h

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.recurrence.recurrence_implementation", lambda choice: implementation)
        return jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(candidate, f, i, start)


@pytest.mark.parametrize("implementation", SCANS)
def test_log_scan_starts_anew_where_nothing_is_kept(implementation: str) -> None:
    a, b, start = coefficients((1, 40, 2))
    a[:, 17], b[:, :3], start = 0, 0, 0 * start
    with np.errstate(divide="ignore"):
        logs = tuple(map(np.log, (a, b, start)))
    np.testing.assert_allclose(np.exp(logarithmic(*logs, implementation)), looped(a, b, start), rtol=3e-6)
    total = jax.jit(jax.grad(lambda *parts: jnp.exp(log_recurrence(*parts, implementation)).sum(), (0, 1, 2)))
    for gradient in total(*logs):
        assert np.isfinite(gradient).all(), "before the first term h is 0, and its logarithm -inf"


@pytest.mark.more_but("associative")
@pytest.mark.parametrize("implementation", SCANS)
def test_gradients_are_those_of_the_differentiated_loop(implementation: str) -> None:
    a, b, start = coefficients((2, 50, 3))
    weights = np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)

    def oracle(a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        h, total = start, jnp.zeros(())
        for t in range(a.shape[1]):
            h = a[:, t] * h + b[:, t]
            total += (weights[:, t] * h * h).sum()
        return total

    def ours(*parts: jax.Array) -> jax.Array:
        return (weights * linear_recurrence(*parts, implementation) ** 2).sum()

    def in_logs(*parts: jax.Array) -> jax.Array:
        return (weights * jnp.exp(log_recurrence(*map(jnp.log, parts), implementation)) ** 2).sum()

    want = jax.jit(jax.grad(oracle, (0, 1, 2)))(a, b, start)
    for function in (ours, in_logs):
        for got, expected in zip(jax.jit(jax.grad(function, (0, 1, 2)))(a, b, start), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_state_is_fp32_whatever_comes_in() -> None:
    a, b, start = (jnp.asarray(x, jnp.bfloat16) for x in coefficients((2, 300, 3)))
    h = linear(a, b, start)
    assert h.dtype == jnp.float32
    np.testing.assert_allclose(h, looped(*(np.asarray(x, np.float32) for x in (a, b, start))), rtol=3e-6)


# The gates


def test_the_activation_is_positive_continuous_and_has_a_logarithm() -> None:
    x = jnp.asarray([-80.0, -3.0, -1e-6, 0.0, 1e-6, 2.0])
    want = np.array([np.exp(-80.0), 1 / (1 + np.exp(3.0)), 0.5, 0.5, 0.5, 2.5])
    np.testing.assert_allclose(positive(x), want, rtol=3e-6)
    np.testing.assert_allclose(log_positive(x), np.log(want), rtol=1e-5, atol=1e-5)
    assert float(log_positive(jnp.float32(-500.0))) == -500.0


def test_gates_by_hand() -> None:
    f, i = jnp.asarray([0.3, -2.0, 12.0, -70.0]), jnp.asarray([-1.0, 0.5, 14.0, -71.0])
    F, I = (1 / (1 + np.exp(-np.asarray(x, np.float64))) for x in (f, i))
    keep, take = (jax.nn.sigmoid(x) for x in gate_logits("gru", [f]))
    np.testing.assert_allclose((keep, take), (1 - F, F), rtol=1e-5, atol=1e-30)
    keep, take = (jax.nn.sigmoid(x) for x in gate_logits("lstm", [f, i]))
    np.testing.assert_allclose((keep, take), (F / (F + I), I / (F + I)), rtol=1e-5)
    keep, take = (jax.nn.sigmoid(x) for x in gate_logits("lstm", [f, i], normalize=False))
    np.testing.assert_allclose((keep, take), (F, I), rtol=1e-5)
    shifted, _ = gate_logits("lstm", [f, i], normalize=False, forget_bias=0.7)
    np.testing.assert_allclose(shifted, f + 0.7, rtol=1e-6)


@pytest.mark.parametrize("space", ["linear", "log"])
def test_extreme_gates_and_padding_have_finite_gradients(space: str) -> None:
    def total(candidate: jax.Array, gate: jax.Array, start: jax.Array, first: jax.Array) -> jax.Array:
        real = jnp.asarray([[False, True, False, True, True, False]])
        fresh = jnp.asarray([[False, True, False, False, True, False]])
        h = hidden_states(candidate, gate_logits("gru", [gate]), space, start, fresh, real, first)
        return (h * jnp.arange(1, 7)[:, None]).sum()

    extreme = jnp.asarray([[[0.0], [200.0], [-200.0], [-200.0], [3.0], [1.0]]])
    got = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(-extreme, extreme, jnp.zeros((1, 1)), jnp.zeros((1,)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_both_spaces_agree_on_values_and_gradients() -> None:
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.standard_normal((2, 30, 4)), jnp.float32) for _ in range(3)]
    segments = jnp.asarray([[0, 0] + [1] * 10 + [0] + [1] * 7 + [2] * 10, [3] * 29 + [0]])
    fresh = jnp.zeros(segments.shape, bool).at[0, 2].set(True).at[0, 20].set(True)

    def total(candidate: jax.Array, f: jax.Array, i: jax.Array, start: jax.Array, space: str) -> Any:
        first = positive(start[0])
        logits = gate_logits("lstm", [f, i])
        h = hidden_states(candidate, logits, space, jnp.exp(start), fresh, segments > 0, first)
        return (h**2).sum(), h

    both = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True), static_argnums=4)
    start = jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)
    plain, log = (both(*parts, start, space) for space in ("linear", "log"))
    for want, got in zip(jax.tree.leaves(plain), jax.tree.leaves(log), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# The mixer, against the reference


def reference(arrays: Any, tag: str, space: str) -> tuple[str, ModelConfig, dict[str, jax.Array], jax.Array]:
    cell, expansion = tag[:-3].rstrip("."), float(tag[-3:])
    config = tiny(d_model=16, mixer=CELLS[cell], positions="none", rnn={"expansion": expansion, "space": space}).config
    name = "to_hidden_and_gate" if cell == "gru" else "to_hidden_and_f_i_gate"
    packed = arrays[f"{tag}:w:{name}.weight"]
    params = {"in": jnp.asarray(packed.reshape(-1, round(16 * expansion), 16).transpose(2, 0, 1))}
    if expansion != 1:
        params["out"] = jnp.asarray(arrays[f"{tag}:w:to_out.weight"].T)
    return cell, config, params, jnp.asarray(arrays[f"{tag}:x"])


@pytest.mark.more_but("gru1.0-linear-loop", "lstm1.5-linear-loop", "gru1.5-log-loop", "lstm1.0-log-associative")
@pytest.mark.parametrize("implementation", SCANS)
@pytest.mark.parametrize("space", ["linear", "log"])
@pytest.mark.parametrize("tag", ["gru1.0", "gru1.5", "gru6.0", "lstm1.0", "lstm1.5", "lstm6.0"])
def test_golden(shared: Path, monkeypatch: pytest.MonkeyPatch, tag: str, space: str, implementation: str) -> None:
    monkeypatch.setattr("model.recurrence.recurrence_implementation", lambda choice: implementation)
    with np.load(shared / "golden" / "minrnn.npz") as arrays:
        cell, config, params, x = reference(arrays, tag, space)
        y, loop = arrays[f"{tag}:y"], arrays[f"{tag}:yloop"]
    ones = jnp.ones(x.shape[:2], jnp.int32)
    # A function of its own: what is traced already would not see the choice above.
    run = jax.jit(functools.partial(apply_mixer), static_argnums=(1, 2))
    got, none = run(params, cell, config, x, ones)
    assert none is None
    np.testing.assert_allclose(got, loop, atol=5e-6, rtol=0)
    np.testing.assert_allclose(got, y, atol=5e-5, rtol=0)
    first, state = run(params, cell, config, x[:, :200], ones[:, :200], rnn_state(config, 2, 0, x.dtype))
    second, _ = run(params, cell, config, x[:, 200:], ones[:, 200:], state)
    np.testing.assert_allclose(np.concatenate([first, second], 1), loop, atol=5e-6, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_live_parity_with_the_library(cell: str, parity_seed: int) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip(f"minGRU_pytorch.min{cell.upper()}")
    torch.manual_seed(parity_seed)
    layer = getattr(library, f"min{cell.upper()}")(16, expansion_factor=1.5)
    x = torch.randn(2, 60, 16)
    with torch.no_grad():
        want = layer(x)
    arrays = {f"{cell}1.5:w:{name}": tensor.numpy() for name, tensor in layer.state_dict().items()}
    arrays[f"{cell}1.5:x"] = x.numpy()
    cell, config, params, x = reference(arrays, f"{cell}1.5", "linear")
    got, _ = run(params, cell, config, x, jnp.ones(x.shape[:2], jnp.int32))
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


# Segments and carried state


@pytest.mark.more_but("lstm-{}")
@pytest.mark.parametrize("rnn", [{}, {"space": "log"}, EVERYTHING, {"conv": 1, "coefficient_norm": False}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_packing_and_padding_change_nothing(cell: str, rnn: dict[str, Any]) -> None:
    model = model_of(cell, **rnn)
    params, tokens = random_params(model), tokens_of(model, (1, 12))
    first, second = tokens[:, :5], tokens[:, 5:]
    apart = [forward(model, params, part)[1] for part in (first, second)]
    assert distance(forward(model, params, tokens)[1][:, 5:], apart[1]) > 0.01, "nothing to hide: the test is blind"
    # Padding on the left, in the middle of a segment, between two and on the right.
    segments = np.array([[0, 0, 3, 3, 0, 3, 3, 3, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0]])
    packed = np.full(segments.shape, 7)
    packed[0, segments[0] > 0] = tokens[0]
    got = forward(model, params, jnp.asarray(packed), None, jnp.asarray(segments))[1][:, segments[0] > 0]
    assert_close(got, jnp.concatenate(apart, 1))


@pytest.mark.more_but("lstm-{}")
@pytest.mark.parametrize("rnn", [{}, {"space": "log"}, EVERYTHING], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_cached_decode_is_the_full_pass_with_left_padding(cell: str, rnn: dict[str, Any]) -> None:
    model = model_of(cell, **rnn)
    params, pads = random_params(model), (3, 0)
    batch = left_pad(np.asarray(tokens_of(model, (2, 9))), pads)
    full = forward(model, params, *batch)[0]
    for prefill in (1, 5):
        stepped = cached(model, params, *batch, prefill)
        for row, pad in enumerate(pads):
            assert_close(stepped[row, pad:], full[row, pad:])


@pytest.mark.more_but("lstm")
@pytest.mark.parametrize("cell", CELLS)
def test_prefill_in_chunks_with_segments_that_go_on_and_end(cell: str) -> None:
    model = model_of(cell, **EVERYTHING)
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
    model = model_of("lstm", **EVERYTHING)
    params, tokens = random_params(model), tokens_of(model, (2, 6))
    start = apply(model, params, tokens, cache=model.init_cache(2, 8)).cache
    segments, positions = jnp.asarray([[0], [1]]), jnp.full((2, 1), 6)
    end = apply(model, params, tokens[:, :1], positions=positions, segments=segments, cache=start).cache
    for before, after in zip(jax.tree.leaves(start.layers), jax.tree.leaves(end.layers), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(np.asarray(start.layers[0]["h"] - end.layers[0]["h"]))[1].max() > 1e-3


@pytest.mark.more
def test_the_sampler_reseats_rows() -> None:
    model = model_of("gru", **EVERYTHING)
    params = random_params(model)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]]
    options = dict(max_new_tokens=6, n=2, stop=(29, 33))
    few, all_ = (generate(model, params, prompts, jax.random.key(0), slots=n, **options) for n in (3, 0))
    assert len(set(few.lengths.tolist())) > 1, "rows that end together are never seated again"
    np.testing.assert_array_equal(few.tokens, all_.tokens)
    tokens = jnp.asarray([[*prompts[1], *few.tokens[2][: few.lengths[2]]]])
    logps = jax.nn.log_softmax(forward(model, params, tokens)[0])[0, 4:-1]
    picked = np.take_along_axis(np.asarray(logps), np.asarray(tokens)[0, 5:, None], 1)[:, 0]
    np.testing.assert_allclose(few.logps[2][: few.lengths[2]], picked, atol=1e-4)


def test_a_segment_starts_from_the_learned_state() -> None:
    model = model_of("gru", learned_start=True)
    params = random_params(model)["layer_0"]["mixer"] | {"start": jnp.full((32,), 2.0)}
    params["in"] = params["in"].at[:, 1].set(0)  # z = 1/2 everywhere
    x, segments = jnp.zeros((1, 4, 32)), jnp.asarray([[1, 1, 2, 0]])
    y, _ = run(params, "gru", model.config, x, segments)
    np.testing.assert_allclose(y[0, :3, 0], [1.5, 1.0, 1.5], rtol=1e-6)  # g(2) = 2.5, g(0) = 0.5


@pytest.mark.programs(250)
def test_the_convolution_by_hand() -> None:
    x = jnp.asarray([5.0, 7.0, 9.0, 11.0, 13.0, 15.0])[None, :, None]
    segments, tail = jnp.asarray([[4, 0, 4, 4, 2, 2]]), jnp.asarray([[[1.0], [3.0]]])
    kernel = jnp.asarray([[100.0], [10.0], [1.0]])
    y, new = causal_convolution(x, kernel, jnp.zeros((1,)), segments, jnp.asarray([4]), tail)
    want = [100 + 30 + 5, None, 300 + 50 + 9, 500 + 90 + 11, 13, 130 + 15]
    for got, expected in zip(y[0, :, 0].tolist(), want, strict=True):
        assert expected is None or got == expected
    np.testing.assert_array_equal(new[0, :, 0], [13, 15])
    _, other = causal_convolution(x[:, :5], kernel, jnp.zeros((1,)), segments[:, :5], jnp.asarray([4]), tail)
    np.testing.assert_array_equal(other[0, :, 0], [0, 13])


# The module in a model


def test_parameters() -> None:
    plain, full = (model_of("lstm", **rnn).abstract()["layer_0"]["mixer"] for rnn in ({}, EVERYTHING))
    assert {name: leaf.shape for name, leaf in plain.items()} == {"in": (32, 3, 32)}
    shapes = {"in": (32, 3, 48), "in_bias": (3, 48), "out": (48, 32), "out_bias": (32,), "start": (48,)}
    assert {name: leaf.shape for name, leaf in full.items()} == shapes | {"conv": (3, 32), "conv_bias": (32,)}
    axes = model_of("gru", **EVERYTHING).axes()["layer_0"]["mixer"]
    assert axes["in"] == ("embed", "gates", "mlp")
    assert axes["out"] == ("mlp", "embed")
    assert axes["start"] == ("mlp",)


def loss_and_gradients(model: Model, params: Any, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, Any]:
    def loss(params: Any) -> jax.Array:
        logits = model.logits(params, model.apply(params, tokens, None, segments).hidden)
        return (jax.nn.logsumexp(logits, -1) * (segments > 0)).mean()

    return jax.value_and_grad(loss)(params)


def batch_of(model: Model) -> tuple[jax.Array, jax.Array]:
    segments = np.ones((8, 10), np.int32)
    segments[0, :3], segments[1, 6:] = 0, 2
    return tokens_of(model, (8, 10)), jnp.asarray(segments)


@pytest.mark.more_but("{'fsdp': 2, 'tensor': 4}")
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"context": 2, "tensor": 4}], ids=str)
def test_eight_devices_compute_what_one_does(shape: dict[str, int]) -> None:
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    model = model_of("lstm", **EVERYTHING)
    params, batch, mesh = random_params(model), batch_of(model), make_mesh(shape)
    step = jax.jit(functools.partial(loss_and_gradients, model))
    want = step(params, *batch)
    placed = jax.device_put(params, model.shardings(mesh))
    with jax.set_mesh(mesh):
        got = step(placed, *jax.device_put(batch, batch_sharding(mesh)))
    for found, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)


@pytest.mark.more
def test_jit_and_remat_change_nothing_and_bf16_little() -> None:
    model = model_of("gru", **EVERYTHING)
    params, batch = random_params(model), batch_of(model)
    hidden = apply(model, params, batch[0], segments=batch[1]).hidden
    np.testing.assert_allclose(model.apply(params, batch[0], None, batch[1]).hidden, hidden, atol=2e-5)
    plain, remat = (
        jax.jit(functools.partial(loss_and_gradients, tiny(**{**model.config.to_dict(), "remat": on})))(params, *batch)
        for on in (False, True)
    )
    for found, expected in zip(jax.tree.leaves(remat), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-7)
    half = apply(tiny(**{**model.config.to_dict(), "dtype": "bfloat16"}), params, batch[0], segments=batch[1]).hidden
    assert half.dtype == jnp.bfloat16
    assert distance(half.astype(jnp.float32), hidden) < 0.15
