"""Settings that any model may have, each against another way to say the same: norms, bases of local layers, scores."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model
from model.attention import einsum
from model.norms import rms_norm
from tests.model.common import assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of


def scales(params: Any, change: Any) -> Any:
    """The parameters with every norm's scale changed."""
    at = jax.tree_util.tree_map_with_path
    return at(lambda path, leaf: change(leaf) if path[-1].key == "scale" else leaf, params)


@functools.partial(jax.jit, static_argnums=0)
def looked_ahead(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    """What multi-token prediction makes of the tokens, after one more final norm."""
    ahead = model.predict_ahead(params, model.apply(params, tokens).hidden, tokens)
    return model.normed(params, ahead[0].hidden)


@functools.partial(jax.jit, static_argnums=(0, 3))
def captured(model: Model, params: Any, tokens: jax.Array, names: tuple[str, ...]) -> Any:
    """Arrays of the first layer by name."""
    out = model.apply(params, tokens, capture=names)
    return {name: layers[0] for name, layers in out.captured.items()}


@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
def test_norms_that_multiply_by_one_more(norm_type: str) -> None:
    settings: dict[str, Any] = {"norm_type": norm_type, "qk_norm": True, "n_layers": 1, "mtp": {"depth": 1}}
    plain, other = tiny(**settings), tiny(**settings, norm_plus_one=True)
    params, tokens = random_params(plain), tokens_of(plain)
    moved = scales(params, lambda scale: scale - 1)
    assert_close(forward(other, moved, tokens)[0], forward(plain, params, tokens)[0])
    want, got = (looked_ahead(*pair, tokens) for pair in ((plain, params), (other, moved)))
    assert_close(got, want)
    assert distance(forward(other, params, tokens)[0], forward(plain, params, tokens)[0]) > 0.1
    fresh = jax.jit(other.init)(jax.random.key(0))
    assert all(not np.any(x) for path, x in jax.tree_util.tree_leaves_with_path(fresh) if path[-1].key == "scale")


def test_norms_of_what_is_added() -> None:
    """peri: x + norm(mixer(norm(x))), and the same for the feed-forward."""
    model = tiny(norm="peri", n_layers=1)
    params, tokens = random_params(model), tokens_of(model)
    names = ("residual.pre", "mixer.out", "residual.mid", "ffn.out", "residual")
    found = captured(model, params, tokens, names)
    layer = params["layer_0"]
    for start, added, norm, end in (
        ("residual.pre", "mixer.out", "mixer_post_norm", "residual.mid"),
        ("residual.mid", "ffn.out", "ffn_post_norm", "residual"),
    ):
        want = found[start] + rms_norm(found[added], layer[norm]["scale"], model.config.norm_eps)
        np.testing.assert_allclose(found[end], want, atol=1e-5)


def test_layers_with_a_window_may_have_a_base_of_their_own() -> None:
    extended: dict[str, Any] = {"kind": "linear", "factor": 4.0, "theta": 5e4, "partial": 0.5}
    local = {"theta": 300.0, "partial": 0.5}
    sizes: dict[str, Any] = {"n_layers": 1}
    one = lambda window, rope: tiny(**sizes, window=window, rope=rope)  # noqa: E731
    params, tokens = random_params(one(None, extended)), tokens_of(tiny())
    both = extended | {"local_theta": 300.0}
    for window, alone in ((3, local), (None, extended)):
        want = forward(one(window, alone), params, tokens)[0]
        assert_close(forward(one(window, both), params, tokens)[0], want)
        assert distance(forward(one(window, local if alone is extended else extended), params, tokens)[0], want) > 1e-2


def mixed() -> Model:
    rope = {"kind": "linear", "factor": 4.0, "local_theta": 300.0}
    return tiny(n_layers=4, window=(3, None, 3, None), rope=rope, norm="peri", norm_plus_one=True, query_scalar=5.0)


def test_local_and_global_layers_decode_as_they_read() -> None:
    model = mixed()
    params, pads = random_params(model), (2, 0)
    batch = left_pad(np.asarray(tokens_of(model)), pads)
    full, stepped = forward(model, params, *batch)[0], cached(model, params, *batch, 5)
    for row, pad in enumerate(pads):
        assert_close(stepped[row, pad:], full[row, pad:])


def test_local_and_global_layers_as_one_loop() -> None:
    model = mixed()
    scanned = tiny(**model.config.to_dict() | {"layers": "scanned"})
    params, tokens = random_params(model), tokens_of(model)
    assert_close(forward(scanned, params, tokens)[0], forward(model, params, tokens)[0])


def test_the_scalar_of_scores() -> None:
    plain, other = tiny(n_layers=1), tiny(n_layers=1, query_scalar=2.0)  # 4 heads of 8
    params, tokens = random_params(plain), tokens_of(plain)
    mixer = params["layer_0"]["mixer"]
    halved = params | {"layer_0": params["layer_0"] | {"mixer": mixer | {"q": mixer["q"] / 2}}}
    assert_close(forward(other, halved, tokens)[0], forward(plain, params, tokens)[0])
    assert jnp.abs(forward(other, params, tokens)[0] - forward(plain, params, tokens)[0]).max() > 0.1


def test_sinks_are_a_key_of_nothing() -> None:
    """One more key, seen by all, whose score is the head's logit and whose value is zero."""
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 3))
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    sinks, mask = jnp.asarray([-1.0, 0.5, 2.0, 9.0]), jnp.asarray(rng.integers(0, 2, (2, 5, 6)), bool)
    one = jnp.zeros((2, 4, 1, 9)).at[..., 8].set(1 / 0.3)
    keys = jnp.concatenate([jnp.pad(k, [(0, 0)] * 3 + [(0, 1)]), one], 2)
    values = jnp.concatenate([v, jnp.zeros((2, 4, 1, 3))], 2)
    queries = jnp.concatenate([q, jnp.broadcast_to(sinks[:, None, None], (2, 4, 5, 1))], -1)
    seen = jnp.pad(mask, [(0, 0)] * 2 + [(0, 1)], constant_values=True)
    want = einsum(queries, keys, values, seen, 0.3)
    np.testing.assert_allclose(einsum(q, k, v, mask, 0.3, sinks), want, atol=1e-6)


@pytest.mark.parametrize("attention", ["einsum", "blocked"])
def test_a_model_with_sinks(attention: str) -> None:
    """Cached and packed as it reads; the weights it shows mix the values, and leave the sinks their share."""
    model = tiny(sinks=True, n_layers=1, window=4, attention=attention)
    params, pads = random_params(model), (2, 0)
    batch = left_pad(np.asarray(tokens_of(model)), pads)
    full, stepped = forward(model, params, *batch)[0], cached(model, params, *batch, 5)
    for row, pad in enumerate(pads):
        assert_close(stepped[row, pad:], full[row, pad:])
    tokens = tokens_of(model, (1, 11))
    packed = forward(model, params, tokens, None, jnp.asarray([[1] * 6 + [2] * 5]))[0]
    assert_close(packed[:, 6:], forward(model, params, tokens[:, 6:])[0])
    if attention == "einsum":
        shown = captured(model, params, tokens, ("attention.weights",))["attention.weights"]
        assert float(shown.sum(-1).max()) < 1 and float(shown.sum(-1).mean()) < 0.9


def test_weights_that_are_shown_are_those_that_mix() -> None:
    model = tiny(sinks=True, n_layers=1, attention="einsum")
    params, tokens = random_params(model), tokens_of(model)
    shown = captured(model, params, tokens, ("attention.weights",))["attention.weights"]

    @jax.jit
    def put_back(params: Any) -> jax.Array:
        return model.apply(params, tokens, patches={"attention.weights": {0: shown}}).hidden

    assert_close(put_back(params), forward(model, params, tokens)[1])


def test_a_gate_behind_attention() -> None:
    """Half open where its projection gives 0, and with a bias of its own where queries have one."""
    plain, gated = (tiny(n_layers=1, out_gate=on, qkv_bias=True) for on in (False, True))
    params, tokens = random_params(gated), tokens_of(gated)
    layer, mixer = params["layer_0"], params["layer_0"]["mixer"]
    nothing = {name: jnp.zeros_like(mixer[name]) for name in ("gate", "gate_bias")}
    half = {name: leaf for name, leaf in mixer.items() if name not in nothing} | {"o": mixer["o"] / 2}
    want = forward(plain, params | {"layer_0": layer | {"mixer": half}}, tokens)[0]
    assert_close(forward(gated, params | {"layer_0": layer | {"mixer": mixer | nothing}}, tokens)[0], want)
    assert distance(forward(gated, params, tokens)[0], want) > 0.1
    batch = left_pad(np.asarray(tokens), (2, 0))
    full, stepped = forward(gated, params, *batch)[0], cached(gated, params, *batch, 5)
    assert_close(stepped[0, 2:], full[0, 2:])
