"""Every kind of rope against transformers' own initialisers, and against their definitions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelConfig, RopeConfig
from model.rope import apply_rope, attention_factor, inverse_frequencies, rope_tables

HEAD_DIM, MAX_LENGTH = 32, 64
FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [2.0 + 0.2 * i for i in range(16)],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"factor": 3.0}),
    "dynamic": ("dynamic", {"factor": 2.0}),
    "llama3": (
        "llama3",
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
    ),
    "yarn": ("yarn", {"factor": 4.0, "original_max_position_embeddings": 16}),
    "yarn with mscale": (
        "yarn",
        {"factor": 40.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.707},
    ),
    "yarn, not truncated": (
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 16, "truncate": False, "beta_fast": 8.0},
    ),
    "yarn, attention factor": (
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.5},
    ),
    "longrope": ("longrope", {**FACTORS, "original_max_position_embeddings": 16}),
    "longrope, factor": ("longrope", {**FACTORS, "original_max_position_embeddings": 16, "factor": 2.0}),
    "longrope, factor 1": ("longrope", {**FACTORS, "original_max_position_embeddings": 16, "factor": 1.0}),
}


def reference(kind: str, settings: dict[str, Any], length: int | None, theta: float) -> tuple[np.ndarray, float]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        rope_theta=theta,
        rope_scaling={"rope_type": kind, **settings},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return frequencies.numpy(), factor


def ours(kind: str, settings: dict[str, Any], theta: float) -> RopeConfig:
    sizes = {"vocab_size": 8, "hidden_size": 128, "num_hidden_layers": 1, "intermediate_size": 8}
    heads = {"num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH, "rope_theta": theta}
    scaling = {"rope_type": kind, **settings}
    return ModelConfig.from_hf({"model_type": "llama", **sizes, **heads, "rope_scaling": scaling}).rope


@pytest.mark.parametrize("length", [None, 8, 200])
@pytest.mark.parametrize("name", KINDS)
def test_against_transformers(name: str, length: int | None) -> None:
    kind, settings = KINDS[name]
    for theta in (10_000.0, 500_000.0):
        rope = ours(kind, settings, theta)
        frequencies, factor = reference(kind, settings, length, theta)
        got = inverse_frequencies(rope, HEAD_DIM, MAX_LENGTH, length)
        np.testing.assert_allclose(got, frequencies, rtol=2e-6)
        assert attention_factor(rope, MAX_LENGTH) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "dynamic", "llama3", "yarn"])
def test_partial_against_transformers(name: str) -> None:
    kind, settings = KINDS[name]
    frequencies, _ = reference(kind, settings | {"partial_rotary_factor": 0.5}, None, 10_000.0)
    rope = RopeConfig(**{**vars(ours(kind, settings, 10_000.0)), "partial": 0.5})
    np.testing.assert_allclose(inverse_frequencies(rope, HEAD_DIM, MAX_LENGTH), frequencies, rtol=2e-6)


def test_default_is_the_definition() -> None:
    """theta^(-2i/d), 2104.09864 section 3.2."""
    want = [10_000.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(), 8, 99), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [8, 16, 17, 64, 65, 200])
def test_frequencies_follow_the_longest_position(name: str, length: int) -> None:
    """The traced choice inside the forward pass equals the one made on the host."""
    kind, settings = KINDS[name]
    rope = ours(kind, settings, 10_000.0)
    positions = jnp.arange(length)[None]
    cos, sin = rope_tables(rope, HEAD_DIM, MAX_LENGTH, positions)
    frequencies = inverse_frequencies(rope, HEAD_DIM, MAX_LENGTH, length)
    angles = np.arange(length)[:, None] * frequencies.astype(np.float64)
    factor = attention_factor(rope, MAX_LENGTH)
    np.testing.assert_allclose(cos[0], np.cos(angles) * factor, atol=1e-4)
    np.testing.assert_allclose(sin[0], np.sin(angles) * factor, atol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_rotation_is_complex_multiplication(interleaved: bool, partial: float) -> None:
    rope = RopeConfig(interleaved=interleaved, partial=partial)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 16)).astype(np.float32)
    positions = jnp.asarray(rng.integers(0, 40, (2, 5)))
    cos, sin = rope_tables(rope, 16, 99, positions)
    got = np.asarray(apply_rope(jnp.asarray(x), cos, sin, interleaved))
    size = int(16 * partial)
    turn = np.exp(1j * np.asarray(positions)[:, None, :, None] * inverse_frequencies(rope, 16, 99))
    pairs = (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(0, size // 2), slice(size // 2, size))
    turned = (x[..., pairs[0]] + 1j * x[..., pairs[1]]) * turn
    np.testing.assert_allclose(got[..., pairs[0]], turned.real, atol=2e-5)
    np.testing.assert_allclose(got[..., pairs[1]], turned.imag, atol=2e-5)
    np.testing.assert_array_equal(got[..., size:], x[..., size:])


def test_scores_depend_on_distance_only() -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(at: int) -> float:
        tables = [rope_tables(RopeConfig(), 16, 99, jnp.asarray([[position]])) for position in (at + 7, at)]
        rotated = [apply_rope(x, *table) for x, table in zip((q, k), tables, strict=True)]
        return float((rotated[0] * rotated[1]).sum())

    assert score(0) == pytest.approx(score(50), abs=1e-4)


def test_low_precision_input_is_rotated_in_fp32() -> None:
    """The tables stay fp32 under bf16 computation: at position 30,000 a bf16 angle would be noise."""
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    cos, sin = rope_tables(RopeConfig(), 8, 40_000, jnp.asarray([[30_001]]))
    assert cos.dtype == sin.dtype == jnp.float32
    wide = apply_rope(x.astype(jnp.float32), cos, sin)
    assert apply_rope(x, cos, sin).dtype == jnp.bfloat16
    np.testing.assert_allclose(apply_rope(x, cos, sin).astype(jnp.float32), wide, atol=1e-2)
