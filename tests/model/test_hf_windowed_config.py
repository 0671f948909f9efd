"""config.json <-> ModelConfig of the families whose layers differ among themselves: spellings, defaults, and what must
not pass in silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import ModelConfig, RopeConfig, build

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


@pytest.mark.parametrize("folder", ["gemma3_text"])
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
