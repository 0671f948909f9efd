"""Latent attention against transformers' DeepSeek-V2 and V3: stored arrays, live models, and mutants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelConfig, RopeConfig, build, mla
from model.mla import softmax_scale
from model.norms import rms_norm
from model.rope import attention_factor, inverse_frequencies
from settings.model_parts import MLAConfig
from tests.model.common import apply, assert_close, cached, distance, left_pad

GOLDENS = ("yarn", "plain", "noqlora")


def golden(shared: Path, variant: str) -> tuple[dict[str, np.ndarray], ModelConfig, Any]:
    """The arrays, and the first block (whose feed-forward is dense) as a model of one layer with its parameters."""
    with np.load(shared / "golden" / f"deepseek_v3_{variant}.npz") as file:
        arrays = dict(file)
    told = json.loads(str(arrays["cfg"]))
    config = one_block(told)
    weights = {name[2:]: array for name, array in arrays.items() if name.startswith("w:")}
    return arrays, config, block_params(weights, config)


def one_block(told: dict[str, Any]) -> ModelConfig:
    """The config of a dense DeepSeek layer from transformers' names."""
    rope = dict(told.get("rope_parameters") or told.get("rope_scaling") or {})
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    names = {"rope_theta": "theta", "original_max_position_embeddings": "original_length"}
    rope = {names.get(name, name): value for name, value in rope.items()}
    rope.setdefault("theta", told.get("rope_theta", 10_000.0))
    widths = {"kv_rank": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim"}
    return ModelConfig(
        vocab_size=told["vocab_size"],
        d_model=told["hidden_size"],
        n_layers=1,
        n_heads=told["num_attention_heads"],
        d_ff=told["intermediate_size"],
        max_length=told["max_position_embeddings"],
        norm_eps=told["rms_norm_eps"],
        mixer="mla",
        mla=MLAConfig(
            q_rank=told["q_lora_rank"] or 0,
            v_dim=told["v_head_dim"],
            **{ours: told[theirs] for ours, theirs in widths.items()},
        ),
        rope=RopeConfig(kind=kind, interleaved=told.get("rope_interleave", True), **rope),
        tied=False,
    )


def block_params(weights: dict[str, np.ndarray], config: ModelConfig) -> Any:
    """Parameters of embed -> first block -> a norm of scale 1, from transformers' names."""
    m, heads, at = config.mla, config.n_heads, "model.layers.0."
    get = lambda name: jnp.asarray(weights[at + name + ".weight"])  # noqa: E731
    per_head = lambda name, width: get(name).T.reshape(-1, heads, width)  # noqa: E731
    mixer = {
        "kv_down": get("self_attn.kv_a_proj_with_mqa").T,
        "kv_norm": {"scale": get("self_attn.kv_a_layernorm")},
        "kv_up": per_head("self_attn.kv_b_proj", m.nope_dim + m.v_dim),
        "o": get("self_attn.o_proj").T.reshape(heads, m.v_dim, -1),
    }
    if m.q_rank:
        mixer["q_down"] = get("self_attn.q_a_proj").T
        mixer["q_norm"] = {"scale": get("self_attn.q_a_layernorm")}
        mixer["q_up"] = per_head("self_attn.q_b_proj", m.nope_dim + m.rope_dim)
    else:
        mixer["q"] = per_head("self_attn.q_proj", m.nope_dim + m.rope_dim)
    block = {
        "mixer": mixer,
        "mixer_norm": {"scale": get("input_layernorm")},
        "ffn": {name: get(f"mlp.{name}_proj").T for name in ("gate", "up", "down")},
        "ffn_norm": {"scale": get("post_attention_layernorm")},
    }
    embed = jnp.asarray(weights["model.embed_tokens.weight"])
    return {"embed": embed, "head": embed, "layer_0": block, "final_norm": {"scale": jnp.ones(config.d_model)}}


def normed(hidden: np.ndarray, config: ModelConfig) -> np.ndarray:
    """What a final norm of scale 1 makes of the residual stream."""
    return np.asarray(rms_norm(jnp.asarray(hidden), jnp.ones(config.d_model), config.norm_eps))


@pytest.mark.parametrize("variant", GOLDENS)
def test_golden_constants(shared: Path, variant: str) -> None:
    arrays, config, _ = golden(shared, variant)
    assert softmax_scale(config) == pytest.approx(float(arrays["attn_scaling"]), rel=1e-6)
    frequencies = inverse_frequencies(config.rope, config.mla.rope_dim, config.max_length)
    np.testing.assert_allclose(frequencies, arrays["inv_freq"], rtol=1e-6)
    factor = attention_factor(config.rope, config.max_length)
    assert factor == pytest.approx(float(arrays["rope_attention_scaling"]), rel=1e-6)


@pytest.mark.more_but("plain")
@pytest.mark.parametrize("variant", GOLDENS)
def test_golden_block_in_one_pass_and_cached(shared: Path, variant: str) -> None:
    """The first layer's output, attention and dense feed-forward, without a cache and as 20 + 4 single steps."""
    arrays, config, params = golden(shared, variant)
    model, ids = build(config), arrays["input_ids"].astype(np.int32)
    want = normed(arrays["hidden"][1], config)
    assert distance(apply(model, params, ids).hidden, want) < 1e-4
    got = cached(model, params, *left_pad(ids, (0, 0)), 20)
    assert_close(got, model.logits(params, jnp.asarray(want)))


def without_m(config: ModelConfig) -> float:
    return (config.mla.nope_dim + config.mla.rope_dim) ** -0.5


MUTANTS: dict[str, tuple[str, Any]] = {
    "no m^2": ("softmax_scale", without_m),
    "m once": ("softmax_scale", lambda c: (without_m(c) * softmax_scale(c)) ** 0.5),
    "no latent norm": ("rms_norm", lambda x, scale, eps: x * scale),
    "half-split rope": ("interleaved", False),
    "plain frequencies": ("kind", "default"),
}


@pytest.mark.programs(250)
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is at least eight thousand times as far off as parity allows."""
    arrays, config, params = golden(shared, "yarn")
    where, value = MUTANTS[name]
    if where == "interleaved":
        config = config.replace(rope=RopeConfig(**{**vars(config.rope), "interleaved": value}))
    elif where == "kind":
        scale = softmax_scale(config)
        config = config.replace(rope=RopeConfig(interleaved=True))
        monkeypatch.setattr(mla, "softmax_scale", lambda _: scale)
    elif where == "rms_norm":
        scaled = lambda *a, name, **k: lambda x: x * params["layer_0"]["mixer"][name]["scale"]  # noqa: E731
        monkeypatch.setattr(mla, "norm_of", scaled)
    else:
        monkeypatch.setattr(mla, where, value)
    hidden = build(config).apply(params, arrays["input_ids"].astype(np.int32)).hidden
    assert distance(hidden, normed(arrays["hidden"][1], config)) > 0.8


@pytest.mark.parametrize("q_rank", [0, 24])
@pytest.mark.parametrize("rope", ["default", "yarn", "yarn 0.707"])
@pytest.mark.parametrize("version", [2, 3])
def test_live_parity_of_a_block(version: int, rope: str, q_rank: int, parity_seed: int) -> None:
    """One dense layer of transformers' DeepSeek-V2 and V3 with weights drawn anew each time."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    rng = np.random.default_rng(parity_seed)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if rope != "default":
        all_dim = 0.707 if "0.707" in rope else 1.0
        parameters |= {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16}
        parameters |= {"mscale": 1.0, "mscale_all_dim": all_dim, "beta_fast": 32.0, "beta_slow": 1.0}
    told = dict(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=q_rank or None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=12,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters=parameters,
        attn_implementation="eager",
    )
    theirs = getattr(transformers, f"DeepseekV{version}ForCausalLM")(
        getattr(transformers, f"DeepseekV{version}Config")(**told)
    ).eval()
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for name, value in weights.items():
        noise = rng.standard_normal(value.shape)
        # Latents so small that the epsilon of their norms, 1e-6 whatever the config says, matters.
        small = 0.01 if "_a_proj" in name else 1.0
        value[...] = 1 + 0.2 * noise if "norm" in name else small * noise / np.sqrt(value.shape[-1])
    theirs.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    ids = rng.integers(0, 64, (2, 30))
    with torch.no_grad():
        want = theirs.model(torch.tensor(ids)).last_hidden_state.numpy()
    config = one_block(told)
    params = block_params(weights, config) | {"final_norm": {"scale": jnp.asarray(weights["model.norm.weight"])}}
    assert softmax_scale(config) == pytest.approx(theirs.model.layers[0].self_attn.scaling, rel=1e-6)
    assert distance(apply(build(config), params, ids.astype(np.int32)).hidden, want) < 1e-4
