"""config.json <-> ModelConfig of the families whose layers differ among themselves: spellings, defaults, and what must
not pass in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import ModelConfig, RopeConfig, build
from model.config import DeltaConfig

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "head_dim": 16,
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read(family: str, **settings: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": family, **SIZES, **settings})


def there_and_back(config: ModelConfig) -> ModelConfig:
    return ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())))


@pytest.mark.parametrize("folder", ["gemma3_text", "gpt_oss", "qwen3_next"])
def test_files_of_transformers_survive_the_way_back(shared: Path, folder: str) -> None:
    config = ModelConfig.from_hf(json.loads((shared / "tiny_hf" / folder / "config.json").read_text()))
    assert there_and_back(config) == config


# Gemma 3


def test_defaults_of_gemma3() -> None:
    config = read("gemma3_text", head_dim=None)
    assert (config.norm, config.norm_plus_one, config.qk_norm, config.tied) == ("peri", True, True, True)
    assert (config.activation, config.embed_scale, config.query_scalar) == ("gelu_tanh", 8.0, 256)
    assert config.window == (*(4096,) * 5, None, 4096)
    assert (config.rope.theta, config.rope.local_theta, config.rope.kind) == (1e6, 1e4, "default")
    assert read("gemma3_text", num_key_value_heads=1).n_kv_heads == 1


def test_spellings_of_gemma3() -> None:
    """That of the releases, in which rope_scaling holds for global layers, and that of today."""
    released = {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 512,
        "sliding_window_pattern": 3,
        "cache_implementation": "hybrid",
    }
    today = {
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            LOCAL: {"rope_type": "default", "rope_theta": 2e4},
        },
        "sliding_window": 512,
        "_sliding_window_pattern": 6,
        "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL],
    }
    config = read("gemma3_text", **released)
    assert config == read("gemma3_text", **today) == there_and_back(config)
    assert config.rope == RopeConfig(kind="linear", theta=5e5, local_theta=2e4, factor=8.0)
    assert config.window == (512, 512, None, 512, 512, None, 512)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported, only None"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ({"hidden_activation": "gelu", "hidden_act": "silu"}, "hidden_activation='gelu' contradicts hidden_act='silu'"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0, expected a number above 0"),
        ({"rope_local_base_freq": "1e4"}, "rope_local_base_freq='1e4', expected a number"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern=0, expected an integer from 1"),
        ({"layer_types": ["chunked_attention"] * 7}, "unknown layer type 'chunked_attention'"),
        ({"layer_types": [LOCAL] * 7, "sliding_window": None}, "contradicts sliding_window=None"),
        ({"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention are not supported"),
        ({"rope_parameters": {LOCAL: {"rope_theta": -1}}}, "rope_theta=-1, expected a number above 0"),
        ({"rope_parameters": {LOCAL: {}, "chunked_attention": {"rope_theta": 1.0}}}, "differ by layer type"),
        ({"rope_parameters": {GLOBAL: {"rope_theta": 2.0}, LOCAL: 3}}, "differ by layer type"),
    ],
)
def test_what_gemma3_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read("gemma3_text", **settings)


def test_the_model_that_sees_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"'gemma3' is not supported: it sees images; .*gemma3_text"):
        read("gemma3")


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "pre"},
        {"norm_plus_one": False},
        {"embed_scale": 1.0},
        {"rope": RopeConfig(theta=1e6)},
        {"qkv_bias": True},
    ],
)
def test_what_gemma3_cannot_say_raises(change: dict[str, Any]) -> None:
    name = {"rope": "rope.local_theta", "qkv_bias": "out_bias"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(ValueError, match=rf"cannot express {name}=.*family='sagax' can"):
        read("gemma3_text").replace(**change).to_hf()


def test_a_scalar_of_the_heads_size_is_none() -> None:
    config = read("gemma3_text", query_pre_attn_scalar=16)
    assert config.replace(query_scalar=None).to_hf() == config.to_hf()
    for change in ({"query_scalar": 9.0}, {"rope": {"local_theta": 1e4}, "window": 3}):
        sizes = {"vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8}
        with pytest.raises(ValueError, match=r"mixer 'mla' has no (query_scalar|rope.local_theta)"):
            build({**sizes, "mixer": "mla", **change})


# gpt-oss


YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN |= {"original_max_position_embeddings": 4096}


def test_defaults_of_gpt_oss() -> None:
    config = read("gpt_oss", num_attention_heads=8)
    assert (config.sinks, config.qkv_bias, config.out_bias, config.mlp_bias, config.tied) == (True,) * 4 + (False,)
    assert (config.activation, config.glu_limit, config.glu_offset) == ("quick_gelu", 7.0, 1.0)
    assert config.window == (128, None, 128, None, 128, None, 128)
    assert (config.n_kv_heads, config.max_length, config.norm_eps) == (8, 131_072, 1e-5)
    assert read("gpt_oss", num_key_value_heads=4) == read("gpt_oss", num_key_value_heads=4, rope_scaling=YARN)
    assert (config.rope.kind, config.rope.theta, config.rope.truncate) == ("yarn", 150_000.0, False)
    moe = config.moe
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.normalize, moe.router_bias) == (128, 4, 0, True, True)


def test_spellings_of_gpt_oss() -> None:
    released = {
        **{"experts_per_token": 2, "num_local_experts": 6, "initial_context_length": 4096, "rope_theta": 1e5},
        **{"rope_scaling": YARN, "hidden_act": "silu", "num_key_value_heads": 4, "swiglu_limit": 5.0},
        "layer_types": [GLOBAL, LOCAL] * 3 + [GLOBAL],
    }
    today = {
        **{"num_experts_per_tok": 2, "num_experts": 6, "swiglu_alpha": 1.702, "num_key_value_heads": 4},
        **{"rope_parameters": {"rope_theta": 1e5, **YARN}, "swiglu_limit": 5.0},
        "layer_types": [GLOBAL, LOCAL] * 3 + [GLOBAL],
    }
    config = read("gpt_oss", **released)
    assert config == read("gpt_oss", **today) == there_and_back(config)
    assert config.window == (None, 128, None, 128, None, 128, None)
    plain = config.replace(rope=RopeConfig(theta=1e5), qkv_bias=False, out_bias=False, window=None)
    assert there_and_back(plain) == plain


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"swiglu_alpha": 1.5}, "swiglu_alpha=1.5 is not supported, only 1.702"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"swiglu_limit": 0}, "swiglu_limit=0, expected a number above 0"),
        ({"num_local_experts": 3, "num_experts": 4}, "num_local_experts=3 contradicts num_experts=4"),
        ({"experts_per_token": 2, "num_experts_per_tok": 4}, "experts_per_token=2 contradicts num_experts_per_tok=4"),
        ({"layer_types": ["sparse_attention"] * 7}, "unknown layer type 'sparse_attention'"),
    ],
)
def test_what_gpt_oss_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read("gpt_oss", num_key_value_heads=4, **settings)


@pytest.mark.parametrize(
    "change", [{"sinks": False}, {"activation": "silu"}, {"glu_offset": 0.0}, {"mlp_bias": False}, {"glu_limit": None}]
)
def test_what_gpt_oss_cannot_say_raises(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"cannot express {next(iter(change))}=.*family='sagax' can"):
        read("gpt_oss", num_key_value_heads=4).replace(**change).to_hf()


def test_sinks_that_have_no_place_are_refused() -> None:
    sizes = {"vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "sinks": True}
    with pytest.raises(ValueError, match="mixer 'mla' has no sinks"):
        build({**sizes, "mixer": "mla"})
    with pytest.raises(ValueError, match="attention='fused' has no place for sinks"):
        build({**sizes, "attention": "fused"})


# Qwen3-Next


DELTA, FULL = "linear_attention", "full_attention"


def test_defaults_of_qwen3_next() -> None:
    config = read("qwen3_next", head_dim=None)
    assert config.per_layer("mixer") == (*("gated_delta",) * 3, "gqa", *("gated_delta",) * 3)
    assert (config.norm_plus_one, config.qk_norm, config.out_gate, config.tied) == (True, True, True, False)
    assert config.delta == DeltaConfig(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv=4)
    assert (config.rope.partial, config.rope.theta, config.n_kv_heads, config.window) == (0.25, 1e4, 2, None)
    moe = config.moe
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.d_shared) == (512, 10, 512, 512)
    assert moe.normalize and moe.shared_gate
    assert (
        read("qwen3_next").head_dim == 16
        and ModelConfig.from_hf(
            {"model_type": "qwen3_next", **{key: value for key, value in SIZES.items() if key != "head_dim"}}
        ).head_dim
        == 256
    )


def test_spellings_of_qwen3_next() -> None:
    released = {"partial_rotary_factor": 0.5, "rope_theta": 1e7, "full_attention_interval": 2, "rope_scaling": None}
    inside = {"partial_rotary_factor": 0.5, "rope_theta": 1e7, "rope_type": "default"}
    today = {"rope_parameters": inside, "layer_types": [DELTA, FULL] * 3 + [DELTA]}
    config = read("qwen3_next", **released)
    assert config == read("qwen3_next", **today) == there_and_back(config)
    assert config.rope == RopeConfig(theta=1e7, partial=0.5)
    for kinds in ([DELTA] * 7, [FULL] * 7, [FULL] + [DELTA] * 6):
        config = read("qwen3_next", layer_types=kinds, attention_bias=True, mlp_only_layers=[1])
        assert there_and_back(config) == config and config.to_hf()["layer_types"] == kinds


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layer_types": ["sliding_attention"] * 7}, "unknown layer type 'sliding_attention'"),
        ({"layer_types": [DELTA] * 6}, "mixer has 6 entries for n_layers=7"),
        ({"layer_types": [FULL] * 8}, "mixer has 8 entries for n_layers=7"),
        ({"full_attention_interval": 0}, "full_attention_interval=0, expected an integer from 1"),
        ({"linear_num_value_heads": 24}, "delta.value_heads=24 is no multiple of delta.key_heads=16"),
        ({"linear_key_head_dim": 0}, "linear_key_head_dim=0, expected an integer from 1"),
        ({"linear_conv_kernel_dim": "4"}, "linear_conv_kernel_dim='4', expected an integer"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5, expected a number above 0 and at most 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0}}, "partial_rotary_factor=0, expected a number above 0"),
        ({"is_causal": False}, "is_causal=False is not supported"),
    ],
)
def test_what_qwen3_next_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(read("qwen3_next", **settings))


@pytest.mark.parametrize(
    "change",
    [
        {"out_gate": False},
        {"norm_plus_one": False},
        {"window": 4},
        {"mixer": ("mingru",) * 7},
        {"norm": "peri"},
        {"rope": RopeConfig(local_theta=3.0)},
    ],
)
def test_what_qwen3_next_cannot_say_raises(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"cannot express .*{next(iter(change))}.*family='sagax' can|unknown layer"):
        read("qwen3_next").replace(**change).to_hf()


def test_sizes_left_to_the_model_are_said() -> None:
    config = read("qwen3_next").replace(delta=DeltaConfig())  # 4 heads of 16
    assert there_and_back(config).delta == DeltaConfig(4, 4, 16, 16)
    assert config.replace(delta=DeltaConfig(chunk=8)).to_hf() == config.to_hf()


def test_gates_that_have_no_place_are_refused() -> None:
    sizes = {"vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "out_gate": True}
    with pytest.raises(ValueError, match="mixer 'mla' has no out_gate"):
        build({**sizes, "mixer": "mla"})
