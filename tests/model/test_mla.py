"""Latent attention against its definition, against itself with absorbed weights, on many devices, and its bytes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.mla import bytes_per_cached_token
from model import Model, ModelConfig, build, mla
from model.attention import attention_mask
from model.context import Context
from model.mla import MLA, Numerics, absorbed, absorbing_pays, mla_state, naive
from model.norms import rms_norm
from model.rope import Rotation, attention_factor, inverse_frequencies, rope_tables
from model.sharding import batch_sharding, make_mesh, replicated
from settings.model_parts import MLAConfig
from tests.model.common import apply, assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of

Layer = Callable[[Any, jax.Array], jax.Array]
SIZES = {"kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "v_dim": 12}
YARN = {"kind": "yarn", "factor": 40.0, "original_length": 8, "mscale": 1.0, "mscale_all_dim": 0.707}
FAMILIES: dict[str, dict[str, Any]] = {
    "full queries": {},
    "low-rank queries, yarn": {"mla": SIZES | {"q_rank": 12}, "rope": YARN | {"interleaved": True}},
    "window": {"mla": SIZES | {"q_rank": 12}, "window": (None, 3)},
    "no rope": {"positions": "none"},
}


def family(name: str, **changes: Any) -> Model:
    return tiny(**({"mixer": "mla", "mla": SIZES} | FAMILIES[name] | changes))


def operands(v_dim: int = 6) -> tuple[Any, ...]:
    """q, latent, shared, kv_up, context: 2 rows, 4 heads, 3 queries that each see some of 9 keys of width 8 + 4."""
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 3, 12), (2, 1, 9, 16), (2, 1, 9, 4), (16, 4, 8 + v_dim))
    segments = jnp.asarray(rng.integers(0, 2, (2, 9)) + 1).at[:, ::4].set(1)
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    context = Context(positions[:, ::4], jnp.ones((2, 3), int), positions, segments, {}, None)
    return (*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes), context)


def definition(q: Any, latent: Any, shared: Any, kv_up: Any, mask: Any, scale: float) -> np.ndarray:
    """2405.04434 equations 9-19, one query of one head at a time, in float64."""
    q, latent, shared, kv_up = (np.asarray(x, np.float64) for x in (q, latent, shared, kv_up))
    nope = q.shape[-1] - shared.shape[-1]
    out = np.zeros((*q.shape[:3], kv_up.shape[-1] - nope))
    for b, h, s in np.ndindex(*q.shape[:3]):
        seen = np.asarray(mask)[b, s]
        expanded = latent[b, 0, seen] @ kv_up[:, h]
        scores = (expanded[:, :nope] @ q[b, h, s, :nope] + shared[b, 0, seen] @ q[b, h, s, nope:]) * scale
        weights = np.exp(scores - scores.max())
        out[b, h, s] = weights / weights.sum() @ expanded[:, nope:]
    return out


@pytest.mark.more_but(
    "einsum-6-naive",
    "einsum-12-naive",
    "fused-6-naive",
    "fused-12-naive",
    "fused-12-absorbed",
    "blocked-6-absorbed",
    "blocked-12-absorbed",
)
@pytest.mark.parametrize("core", [naive, absorbed])
@pytest.mark.parametrize("v_dim", [6, 12])
@pytest.mark.parametrize("kind", ["einsum", "fused", "blocked"])
def test_both_cores_are_the_definition(core: Any, kind: str, v_dim: int) -> None:
    """The fused kernel included, which serves values as wide as the keys and leaves others to einsum."""
    *given, context = operands(v_dim)
    numerics = Numerics(attention=kind)
    for window in (None, 3):
        want = definition(*given, attention_mask(context, window), 0.3)
        assert distance(core(*given, context, window, 0.3, numerics), want) < 1e-5


def test_a_query_that_sees_nothing_gives_no_nan() -> None:
    *given, context = operands()
    blind = dataclasses.replace(context, segments=jnp.zeros_like(context.segments))
    for core in (naive, absorbed):
        assert np.isfinite(core(*given, blind, None, 0.3)).all()


# --- the whole layer ---------------------------------------------------------------------------------------------


def reference(params: Any, x: jax.Array, positions: jax.Array, mask: jax.Array, config: ModelConfig) -> jax.Array:
    """The layer in plain jnp: no fused heads, no concatenated keys, rotation as complex multiplication."""
    m = config.mla

    def norm(y: jax.Array, scale: jax.Array) -> jax.Array:
        return y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * scale

    def rotate(y: jax.Array) -> jax.Array:
        turn = jnp.exp(1j * positions[..., None] * inverse_frequencies(config.rope, m.rope_dim, config.max_length))
        turn = (turn * attention_factor(config.rope, config.max_length)).reshape(
            *positions.shape, *[1] * (y.ndim - 3), -1
        )
        half = m.rope_dim // 2
        first, second = (y[..., 0::2], y[..., 1::2]) if config.rope.interleaved else (y[..., :half], y[..., half:])
        turned = (first + 1j * second) * turn
        return jnp.concatenate([turned.real, turned.imag], -1)  # any order, the same in query and key

    if m.q_rank:
        q = jnp.einsum("bsr,rhd->bshd", norm(x @ params["q_down"], params["q_norm"]["scale"]), params["q_up"])
    else:
        q = jnp.einsum("bsd,dhe->bshe", x, params["q"])
    down = x @ params["kv_down"]
    latent, shared = norm(down[..., : m.kv_rank], params["kv_norm"]["scale"]), rotate(down[..., m.kv_rank :])
    expanded = jnp.einsum("blr,rhe->blhe", latent, params["kv_up"])
    scores = jnp.einsum("bshn,blhn->bhsl", q[..., : m.nope_dim], expanded[..., : m.nope_dim])
    scores = scores + jnp.einsum("bshp,blp->bhsl", rotate(q[..., m.nope_dim :]), shared)
    temperature = 1.0
    if config.rope.kind == "yarn":
        temperature = (0.1 * config.rope.mscale_all_dim * np.log(config.rope.factor) + 1) ** 2
    scores = scores * temperature / np.sqrt(m.nope_dim + m.rope_dim)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), -1)
    mixed = jnp.einsum("bhsl,blhv->bshv", weights, expanded[..., m.nope_dim :])
    return jnp.einsum("bshv,hvd->bsd", mixed, params["o"])


def one_layer(
    config: ModelConfig, window: int | None
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array], Any]:
    """The module and the reference as functions of (parameters, x), and random arguments for both."""
    model = build(config)
    params = random_params(model)["layer_0"]["mixer"]
    # Latents so small that the epsilon of their norms matters.
    params = {name: leaf * 0.01 if name.endswith("down") else leaf for name, leaf in params.items()}
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 11, config.d_model)), jnp.float32)
    segments = jnp.asarray([[1] * 6 + [2] * 5, [1] * 11])
    positions = jnp.asarray([[*range(6), *range(5)], [*range(11)]])
    width = config.mla.rope_dim
    table = {Rotation(width, False): rope_tables(config.rope, width, config.max_length, positions)}
    context = Context(positions, segments, positions, segments, table, None)
    mask = attention_mask(context, window)
    module = lambda p, x: MLA(config).apply({"params": p}, x, context, window, None)[0]  # noqa: E731
    return module, lambda p, x: reference(p, x, positions, mask, config), (params, x)


@pytest.mark.more_but("low-rank queries, yarn-None")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["full queries", "low-rank queries, yarn"])
@pytest.mark.programs(250)
def test_output_and_gradients_equal_the_reference(name: str, window: int | None) -> None:
    module, plain, given = one_layer(family(name).config, window)
    probe = jnp.asarray(np.random.default_rng(4).standard_normal(given[1].shape), jnp.float32)
    both = [
        jax.jit(jax.value_and_grad(lambda p, x, f=f: ((y := f(p, x)) * probe).sum() + (y**2).sum(), (0, 1)))(*given)
        for f in (module, plain)
    ]
    assert distance(module(*given), plain(*given)) < 1e-5
    assert float(both[0][0]) == pytest.approx(float(both[1][0]), rel=1e-5)
    for got, want in zip(*(jax.tree.leaves(found[1]) for found in both), strict=True):
        assert distance(got, want) < 1e-5 * max(1.0, float(np.abs(want).max() / np.std(want)))


@pytest.mark.parametrize("eps", [1e-7, 1e-5])
def test_another_epsilon_of_the_latent_norms_is_another_layer(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module, plain, given = one_layer(family("low-rank queries, yarn").config, None)
    monkeypatch.setattr(mla, "LATENT_NORM_EPS", eps)
    assert distance(module(*given), plain(*given)) > 1e-3


def test_jit_equals_no_jit() -> None:
    module, _, given = one_layer(family("low-rank queries, yarn").config, None)
    assert distance(jax.jit(module)(*given), module(*given)) < 1e-5


@pytest.mark.more_but("window")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.programs(250)
def test_cached_decode_equals_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill with naive attention, then single steps with the absorbed one, behind left padding."""
    model = family(name)
    params = random_params(model)
    called: list[str] = []
    for core in (naive, absorbed):
        spy = lambda *given, core=core: called.append(core.__name__) or core(*given)  # noqa: E731
        monkeypatch.setattr(mla, core.__name__, spy)
    tokens = np.asarray(tokens_of(model, (2, 12)))
    got = cached.__wrapped__(model, params, *left_pad(tokens, (3, 0)), 9)
    monkeypatch.undo()
    assert set(called) == {"naive", "absorbed"}
    want, _ = forward(model, params, tokens)
    assert_close(got[1], want[1], 1e-5)
    assert_close(got[0, 3:], want[0, :-3], 1e-5)


@pytest.mark.more_but("window")
@pytest.mark.parametrize("name", ["full queries", "window"])
def test_packed_segments_equal_separate_rows(name: str) -> None:
    """In one pass, and in a cache whose second segment goes on by single steps."""
    model = family(name)
    params = random_params(model)
    first, second = tokens_of(model, (1, 5), 1), tokens_of(model, (1, 6), 2)
    tokens, segments = jnp.concatenate([first, second], 1), jnp.asarray([[1] * 5 + [2] * 6])
    packed, _ = forward(model, params, tokens, None, segments)
    cache, hidden = model.init_cache(1, 16), []
    for part in (slice(0, 8), slice(8, 9), slice(9, 10), slice(10, 11)):
        out = apply(model, params, tokens[:, part], segments=segments[:, part], cache=cache)
        cache = out.cache
        hidden.append(out.hidden)
    decoded = model.logits(params, jnp.concatenate(hidden, 1))
    for got in (packed, decoded):
        assert_close(got[:, :5], forward(model, params, first)[0], 1e-5)
        assert_close(got[:, 5:], forward(model, params, second)[0], 1e-5)


def test_bf16_stays_close_to_fp32() -> None:
    wide, narrow = (family("low-rank queries, yarn", dtype=dtype) for dtype in ("float32", "bfloat16"))
    params, tokens = random_params(wide), tokens_of(wide)
    want, _ = forward(wide, params, tokens)
    whole = left_pad(np.asarray(tokens), (0, 0))
    for got in (forward(narrow, params, tokens)[0], cached(narrow, params, *whole, 6)):
        assert np.sqrt(np.mean((np.asarray(got) - np.asarray(want)) ** 2)) < 0.03 * np.std(want)
    assert narrow.init_cache(1, 4).layers[0]["latent"].dtype == jnp.bfloat16


def test_the_cache_holds_the_latents_after_norm_and_rotation() -> None:
    model = family("full queries")
    params, tokens = random_params(model), tokens_of(model, (1, 5))
    layer = apply(model, params, tokens, cache=model.init_cache(1, 7)).cache.layers[0]
    assert {name: leaf.shape for name, leaf in layer.items()} == {"latent": (1, 1, 7, 16), "rope": (1, 1, 7, 4)}
    weights = params["layer_0"]["mixer"]
    x = rms_norm(params["embed"][tokens], params["layer_0"]["mixer_norm"]["scale"], model.config.norm_eps)
    down = x @ weights["kv_down"]
    want = rms_norm(down[..., :16], weights["kv_norm"]["scale"], 1e-6)
    np.testing.assert_allclose(layer["latent"][0, 0, :5], want[0], atol=1e-5)
    np.testing.assert_allclose(layer["rope"][0, 0, 0], down[0, 0, 16:], atol=1e-5)
    assert distance(layer["rope"][0, 0, 1:5], down[0, 1:, 16:]) > 0.1


def test_absorbing_is_chosen_where_it_multiplies_less() -> None:
    deepseek = MLAConfig(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
    assert absorbing_pays(1, 4096, deepseek) and absorbing_pays(64, 4096, deepseek)
    assert not absorbing_pays(4096, 4096, deepseek) and not absorbing_pays(1024, 4096, deepseek)


def test_settings_of_other_mixers_are_refused() -> None:
    for name in ("qkv_bias", "out_bias", "qk_norm"):
        with pytest.raises(ValueError, match=f"mixer 'mla' has no {name}"):
            family("full queries", **{name: True}).abstract()


# --- many devices --------------------------------------------------------------------------------------------------


def loss_and_gradients(model: Model, params: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    def loss(params: Any) -> jax.Array:
        log_probs = jax.nn.log_softmax(model.logits(params, model.apply(params, tokens).hidden[:, :-1]))
        return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean()

    return jax.value_and_grad(loss)(params)


needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


@pytest.mark.more_but("{'data': 2, 'fsdp': 2, 'tensor': 2}")
@needs_eight
@pytest.mark.parametrize("shape", [{"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_sharded_equals_single_device(shape: dict[str, int]) -> None:
    model, mesh = family("low-rank queries, yarn"), make_mesh(shape)
    params, tokens = random_params(model), tokens_of(model, (8, 10))
    want_loss, want = jax.jit(functools.partial(loss_and_gradients, model))(params, tokens)
    shardings = model.shardings(mesh)
    step = jax.jit(functools.partial(loss_and_gradients, model), out_shardings=(replicated(mesh), shardings))
    with jax.set_mesh(mesh):
        loss, gradients = step(jax.device_put(params, shardings), jax.device_put(tokens, batch_sharding(mesh)))
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5 * float(np.abs(expected).max()), rtol=0)


@needs_eight
def test_tensor_parallelism_splits_the_heads_and_repeats_the_latents() -> None:
    model, mesh = family("low-rank queries, yarn"), make_mesh({"data": 2, "tensor": 4})
    params, tokens = random_params(model), tokens_of(model, (4, 6))
    found = model.shardings(mesh)["layer_0"]["mixer"]
    for name, axis in (("q_up", 1), ("kv_up", 1), ("o", 0)):
        shape = params["layer_0"]["mixer"][name].shape
        assert found[name].shard_shape(shape)[axis] == 1
    for name in ("q_down", "kv_down"):
        assert found[name].is_fully_replicated

    def run(params: Any, tokens: jax.Array) -> Any:
        first = model.apply(params, tokens[:, :5], cache=model.init_cache(4, 8))
        return model.apply(params, tokens[:, 5:], cache=first.cache)

    want = jax.jit(run)(params, tokens).hidden
    with jax.set_mesh(mesh):
        out = jax.jit(run)(jax.device_put(params, model.shardings(mesh)), tokens)
    np.testing.assert_allclose(out.hidden, want, atol=2e-5)
    assert "tensor" not in jax.tree.leaves(tuple(out.cache.layers[0]["latent"].sharding.spec))


# --- bytes ---------------------------------------------------------------------------------------------------------


def test_absorbed_decode_reads_the_latents_and_not_the_heads_keys() -> None:
    """Bytes of the compiled step per cached token: scores read R + rope numbers and values R of them, whatever the
    number of heads; a head adds its scores alone, where naive attention adds its keys and values.
    """
    sizes = MLAConfig(kv_rank=256, nope_dim=64, rope_dim=32, v_dim=64)
    few, many = (bytes_per_cached_token(absorbed, sizes, heads) / 4 for heads in (4, 16))
    per_head = (many - few) / 12
    assert per_head < 16
    assert many - 16 * per_head == pytest.approx(2 * 256 + 32, rel=0.02)
    few, many = (bytes_per_cached_token(naive, sizes, heads) / 4 for heads in (4, 16))
    assert (many - few) / 12 > 3 * (64 + 32 + 64)


def test_the_cache_is_the_rank_and_the_rotary_width_per_token() -> None:
    config = family("full queries").config
    leaves = jax.tree.leaves(mla_state(config, 2, 10, jnp.bfloat16))
    assert sum(leaf.nbytes for leaf in leaves) == 2 * 10 * 2 * (config.mla.kv_rank + config.mla.rope_dim)
