"""Families whose layers differ among themselves against stored outputs of transformers, and proof that the comparison
can fail: Gemma 3, gpt-oss, Qwen3-Next.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from model import Model, ModelConfig, build, delta, delta_rule, hf
from model.hf.saving import _Entry
from model.hf.tables import flat_leaves, table_for
from tests.model.common import assert_close, cached, distance, forward, left_pad

# What is allowed, in standard deviations.
FAMILIES = {"gemma3_text": 1e-4, "gpt_oss": 1e-4, "qwen3_next": 5e-4}
Case = tuple[Model, Any, dict[str, np.ndarray]]


@functools.cache
def read(folder: Path) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every key of theirs is known
        model, params = hf.load(folder)
    with np.load(folder / "golden.npz") as golden:
        return model, params, dict(golden)


@pytest.fixture
def case(shared: Path, family: str) -> Case:
    return read(shared / "tiny_hf" / family)


def ids_of(golden: dict[str, np.ndarray]) -> jax.Array:
    return jnp.asarray(golden["ids"], jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def layers(model: Model, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Logits, hidden states after the final norm, and those before each layer."""
    out = model.apply(params, tokens, capture=("residual.pre",))
    return model.logits(params, out.hidden), out.hidden, out.captured["residual.pre"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer(case: Case, family: str) -> None:
    model, params, golden = case
    logits, hidden, before = layers(model, params, ids_of(golden))
    print(f"{family}: {distance(logits, golden['logits']):.2g} standard deviations")
    assert_close(logits, golden["logits"], FAMILIES[family])
    assert distance(hidden, golden["hidden_last"]) < FAMILIES[family]
    for i, state in before.items():
        assert distance(state, golden[f"hidden{i}"]) < FAMILIES[family]


@pytest.mark.more_but("gpt_oss")
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_row(case: Case, family: str) -> None:
    model, params, golden = case
    columns = (golden[key].astype(np.int32) for key in ("ids", "leftpad_pos", "leftpad_mask"))
    logits, _ = forward(model, params, *columns)
    assert_close(logits[0, 7:], golden["leftpad_logits"], FAMILIES[family])
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decode(case: Case, family: str) -> None:
    """Prefill and single steps on rows that begin in different columns; and the reference's own greedy tokens."""
    model, params, golden = case
    pads = (5, 0)
    logits = np.asarray(cached(model, params, *left_pad(golden["ids"], pads), 20))
    for row, pad in enumerate(pads):
        assert_close(logits[row, pad:], golden["logits"][row, : logits.shape[1] - pad], FAMILIES[family])
    written = golden["greedy"].astype(np.int32)
    chosen = np.asarray(cached(model, params, *left_pad(written[:, :-1], (0,)), 16)).argmax(-1)
    np.testing.assert_array_equal(chosen[:, 15:], written[:, 16:])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows(case: Case, family: str) -> None:
    """Two rows with padding before, between and behind them in one: neither sees the other."""
    model, params, golden = case
    gap = np.zeros((1, 3), np.int32)
    parts = [golden["ids"][:1, :20], golden["ids"][1:, :17]]
    tokens = np.concatenate([gap, parts[0], gap, parts[1], gap], 1).astype(np.int32)
    marks = [(part * 0 + i).astype(np.int32) for i, part in enumerate(parts, 1)]
    segments = np.concatenate([gap, marks[0], gap, marks[1], gap], 1)
    logits, _ = forward(model, params, tokens, None, segments)
    assert_close(logits[:, 3:23], golden["logits"][:1, :20], FAMILIES[family])
    assert_close(logits[:, 26:43], golden["logits"][1:, :17], FAMILIES[family])


@functools.partial(jax.jit, static_argnums=0)
def learnt(model: Model, params: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
    """The mean loss of the next tokens and its gradients."""

    def loss(params: Any) -> jax.Array:
        logits = model.logits(params, model.apply(params, tokens).hidden)[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    return jax.value_and_grad(loss)(params)


def by_their_names(model: Model, params: Any) -> dict[str, np.ndarray]:
    """A tree like the parameters' as tensors of a file."""
    leaves = flat_leaves(params)
    entries = (_Entry(n, r, e) for r in table_for(model.config, leaves).rules for e, n in enumerate(r.names(leaves)))
    return {entry.name: entry.value(leaves) for entry in entries}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(case: Case, family: str) -> None:
    model, params, golden = case
    loss, gradients = learnt(model, params, ids_of(golden))
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    found = by_their_names(model, gradients)
    wanted = {name.removeprefix("grad:"): value for name, value in golden.items() if name.startswith("grad:")}
    assert len(wanted) > 2
    for name, value in wanted.items():
        off = np.abs(found[name] - value).max() / np.abs(value).max()
        print(f"{name}: {off:.2g} of the largest")
        assert off < FAMILIES[family], name


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(case: Case, family: str, shared: Path, tmp_path: Path) -> None:
    """The same tensors, bit for bit, and a config.json that says the same."""
    model, params, _ = case
    hf.save(tmp_path / "out", model, params)
    theirs = load_file(shared / "tiny_hf" / family / "model.safetensors")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].tobytes() == tensor.tobytes(), name
    again, same = hf.load(tmp_path / "out")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.more
@pytest.mark.parametrize("family", FAMILIES)
def test_jit_equals_no_jit(case: Case, family: str) -> None:
    model, params, golden = case
    tokens = ids_of(golden)[:1, :12]
    assert distance(model.apply(params, tokens).hidden, forward(model, params, tokens)[1]) < FAMILIES[family] / 10


def part(name: str, **changes: Any) -> Callable[[ModelConfig], dict[str, Any]]:
    """A change of some settings of one part of the config."""
    return lambda config: {name: dataclasses.replace(getattr(config, name), **changes)}


MUTANTS: dict[str, tuple[str, Callable[[ModelConfig], dict[str, Any]]]] = {
    "norms after the sum": ("gemma3_text", lambda c: {"norm": "sandwich"}),
    "scales instead of 1 + scales": ("gemma3_text", lambda c: {"norm_plus_one": False}),
    "scores divided by the root of the head's size": ("gemma3_text", lambda c: {"query_scalar": None}),
    "one base for all layers": ("gemma3_text", part("rope", local_theta=None)),
    "another base of local layers": ("gemma3_text", part("rope", local_theta=20_000.0)),
    "another base of global layers": ("gemma3_text", part("rope", theta=500_000.0)),
    "global layers that are not extended": ("gemma3_text", part("rope", kind="default")),
    "embeddings that are not multiplied": ("gemma3_text", lambda c: {"embed_scale": 1.0}),
    "no norm of queries and keys": ("gemma3_text", lambda c: {"qk_norm": False}),
    "windows one wider": ("gemma3_text", lambda c: {"window": tuple(w and w + 1 for w in c.window)}),
    "attention without its gate": ("qwen3_next", lambda c: {"out_gate": False}),
    "whole heads rotated": ("qwen3_next", part("rope", partial=1.0)),
    "scales of attention's layers instead of 1 + scales": ("qwen3_next", lambda c: {"norm_plus_one": False}),
    "no gate of the shared expert": ("qwen3_next", part("moe", shared_gate=False)),
    "gates of experts over the sum of all": ("qwen3_next", part("moe", normalize=False)),
    "no sinks": ("gpt_oss", lambda c: {"sinks": False}),
    "no router bias": ("gpt_oss", part("moe", router_bias=False)),
    "no biases of experts": ("gpt_oss", lambda c: {"mlp_bias": False}),
    "no biases of queries and keys": ("gpt_oss", lambda c: {"qkv_bias": False}),
    "SiLU for its steeper form": ("gpt_oss", lambda c: {"activation": "silu"}),
    "gates up to 6": ("gpt_oss", lambda c: {"glu_limit": 6.0}),
    "nothing added to what is gated": ("gpt_oss", lambda c: {"glu_offset": 0.0}),
    "gates over the sum of all": ("gpt_oss", part("moe", normalize=False)),
    "windows one narrower": ("gpt_oss", lambda c: {"window": tuple(w and w - 1 for w in c.window)}),
    "windows in the other layers": ("gpt_oss", lambda c: {"window": (None, 8, None)}),
    "whole dimensions of YaRN": ("gpt_oss", part("rope", truncate=True)),
    "no factor on cos and sin": ("gpt_oss", part("rope", attention_factor=1.0)),
    "exact GELU": ("gemma3_text", lambda c: {"activation": "gelu"}),
}


def changed(params: Any, **changes: Callable[[Any], Any]) -> Any:
    """The parameters with those of these names (the ends of their paths) changed."""
    ends = lambda path: "_".join(entry.key for entry in path[-2:])  # noqa: E731

    def change(path: Any, leaf: Any) -> Any:
        return next((by(leaf) for name, by in changes.items() if ends(path).endswith(name)), leaf)

    return jax.tree_util.tree_map_with_path(change, params)


WEIGHTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "rates for decays": ("qwen3_next", lambda p: changed(p, mixer_ba=lambda x: jnp.roll(x, 2, -1))),
    "no bias of decays": ("qwen3_next", lambda p: changed(p, dt_bias=jnp.zeros_like)),
    "decays twice as fast": ("qwen3_next", lambda p: changed(p, a_log=lambda x: x + np.log(2))),
    "gates for values": ("qwen3_next", lambda p: changed(p, mixer_qkvz=lambda x: jnp.roll(x, 24, -1))),
    "queries for keys": ("qwen3_next", lambda p: changed(p, mixer_qkvz=lambda x: x.at[..., :16].set(x[..., 8:24]))),
    "a convolution that sees one column": ("qwen3_next", lambda p: changed(p, mixer_conv=lambda x: x.at[:-1].set(0))),
    "a convolution the other way round": ("qwen3_next", lambda p: changed(p, mixer_conv=lambda x: x[::-1])),
    "1 + scales of heads": ("qwen3_next", lambda p: changed(p, norm_scale=lambda x: x + 1 if x.shape == (12,) else x)),
    "up for gate": ("gpt_oss", lambda p: p | {"layer_0": swapped(p["layer_0"])}),
}


def swapped(layer: Any) -> Any:
    """A layer whose experts' gates and what they multiply have changed places."""
    names = {"gate": "up", "up": "gate", "gate_bias": "up_bias", "up_bias": "gate_bias"}
    return layer | {"ffn": {names.get(name, name): leaf for name, leaf in layer["ffn"].items()}}


# Of the code itself: (module, name, what it becomes).
CODE: dict[str, tuple[str, Any, str, Any]] = {
    "keys of any length": ("qwen3_next", delta, "unit", lambda x: x),
    "a rule without its correction": ("qwen3_next", delta_rule, "unit_inverse", lambda a: jnp.eye(a.shape[-1]) + 0 * a),
    "ungated heads": ("qwen3_next", delta.GatedDelta, "_output", None),
}


@pytest.mark.more_but("decays twice as fast", "a rule without its correction")
@pytest.mark.parametrize("name", [*WEIGHTS, *CODE])
def test_mutant_of_the_rule_is_caught(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = (WEIGHTS | CODE)[name][0]
    model, params, golden = read(shared / "tiny_hf" / family)
    if name in WEIGHTS:
        params = WEIGHTS[name][1](params)
    else:
        _, home, attribute, other = CODE[name]
        whole = getattr(home, attribute)
        ungated = lambda self, y, gates: whole(self, y, jnp.ones_like(gates))  # noqa: E731
        monkeypatch.setattr(home, attribute, other or ungated)
    # Compiled apart from everything else, whose traces are of the code as it is.
    logits = jax.jit(lambda params: forward.__wrapped__(model, params, ids_of(golden))[0])(params)
    found = distance(logits, golden["logits"])
    print(f"{name}: {found:.3g} standard deviations")
    assert found > 10 * FAMILIES[family], f"{name}: only {found:.3g} standard deviations away"


@pytest.mark.more_but("scales instead of 1 + scales", "another base of local layers", "no sinks")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(shared: Path, name: str) -> None:
    family, change = MUTANTS[name]
    model, params, golden = read(shared / "tiny_hf" / family)
    mutant = build(model.config.replace(**change(model.config)))
    found = distance(forward(mutant, params, ids_of(golden))[0], golden["logits"])
    print(f"{name}: {found:.3g} standard deviations")
    assert found > 10 * FAMILIES[family], f"{name}: only {found:.3g} standard deviations away"
