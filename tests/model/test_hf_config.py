"""config.json <-> ModelConfig: both spellings, family defaults, and every setting that must not pass in
silence.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, RopeConfig
from model.hf.families import FAMILIES
from model.hf.values import SILENT

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "intermediate_size": 48,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}


def read(family: str = "llama", **settings: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": family, **SIZES, **settings})


@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
@pytest.mark.parametrize("kind, values", [("llama3", LLAMA3), ("yarn", YARN), ("linear", {"factor": 2.0})])
def test_both_spellings_of_rope(kind_key: str, kind: str, values: dict[str, Any]) -> None:
    older = read(rope_theta=5e5, rope_scaling={kind_key: kind, **values})
    newer = read(rope_parameters={"rope_theta": 5e5, "rope_type": kind, **values})
    assert older == newer
    assert (older.rope.kind, older.rope.theta, older.rope.factor) == (kind, 5e5, values["factor"])


def test_rope_defaults() -> None:
    assert read().rope == RopeConfig()
    assert read(rope_theta=7.0, rope_scaling=None).rope == RopeConfig(theta=7.0)
    inside = {"rope_type": "default", "rope_theta": 9.0}
    assert read(rope_theta=7.0, rope_parameters=inside).rope == RopeConfig(theta=9.0)
    whole = read(rope_scaling={"rope_type": "yarn", "factor": 2.0}, max_position_embeddings=99)
    assert whole.rope.original_length == 99
    outside = read(rope_scaling={"rope_type": "yarn", **YARN}, original_max_position_embeddings=8)
    assert outside.rope.original_length == 8


def test_rope_by_layer_type_must_agree() -> None:
    one = {"rope_type": "default", "rope_theta": 5.0}
    same = {"full_attention": one, "sliding_attention": dict(one)}
    assert read("qwen3", rope_parameters=same).rope.theta == 5.0
    with pytest.raises(ValueError, match="differ by layer type"):
        read("qwen3", rope_parameters={"full_attention": one, "sliding_attention": one | {"rope_theta": 6.0}})


def test_tying_defaults_belong_to_the_family() -> None:
    tied = {family: read(family).tied for family in ("llama", "mistral", "qwen2", "qwen3")}
    assert tied == dict.fromkeys(tied, False)
    assert ModelConfig.from_hf({"model_type": "gpt2"}).tied


def test_other_defaults_belong_to_the_family() -> None:
    heads = {family: read(family).n_kv_heads for family in ("llama", "mistral", "qwen2", "qwen3")}
    assert heads == {"llama": 32, "mistral": 8, "qwen2": 32, "qwen3": 32}
    assert read("llama", num_attention_heads=16).n_kv_heads == 16
    assert read("mistral").window == 4096
    assert read("qwen3").head_dim == 128
    assert read("qwen2").head_dim == read("qwen3", head_dim=None).head_dim == 8


def test_biases_by_family() -> None:
    def biases(config: ModelConfig) -> tuple[bool, bool, bool]:
        return config.qkv_bias, config.out_bias, config.mlp_bias

    assert biases(read("llama", attention_bias=True, mlp_bias=True)) == (True, True, True)
    assert biases(read("llama")) == (False, False, False)
    assert biases(read("qwen2")) == (True, False, False)
    assert biases(read("qwen3", attention_bias=True)) == (True, True, False)
    assert biases(ModelConfig.from_hf({"model_type": "gpt2"})) == (True, True, True)


def test_windows() -> None:
    on = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    assert read("qwen2").window is None
    assert read("qwen2", sliding_window=6, max_window_layers=0).window is None
    assert read("qwen2", **on).window == (None, 6, 6)
    assert read("qwen2", **on | {"max_window_layers": 0}).window == 6
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read("qwen3", **on, layer_types=types).window == (6, None, 6)
    assert read("mistral", sliding_window=5).window == 5
    assert read("mistral", sliding_window=None).window is None


@pytest.mark.parametrize(
    "family, settings, message",
    [
        ("lama", {}, "unknown model_type 'lama'. Did you mean 'llama'"),
        (None, {}, "unknown model_type None.*llama, mistral, qwen2, qwen3, mixtral.*gpt2, huginn_raven, ouro, sagax"),
        ("llama", {"hidden_size": None}, "lacks hidden_size"),
        ("llama", {"hidden_act": "gelu_fast"}, "unknown hidden_act 'gelu_fast'. Did you mean 'gelu'"),
        ("llama", {"rope_scaling": {"rope_type": "proportional"}}, "unknown rope_type 'proportional'"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "lacks low_freq_factor, high_freq",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"torch_dtype": "float8_e4m3fn"}, "unknown param_dtype"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "contradicts sliding_window=None"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "unknown layer type 'chunked_attention'"),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "window has 2 entries for n_layers=3"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "contradicts sliding_window=4096"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_what_we_cannot_compute_raises(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({"model_type": family, **SIZES, **settings})


DECODERS = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
DECODERS = (*DECODERS, "gemma3_text", "gpt_oss", "qwen3_next")


def read_any(family: str, **settings: Any) -> ModelConfig:
    """As `read`, of any family: latent attention has as many heads of keys as of queries, V2 no default of its own."""
    needed = {"num_key_value_heads": 32} if family in DECODERS else {}
    return read(family, **needed | ({"num_experts_per_tok": 2} if family == "deepseek_v2" else {}) | settings)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "rope, without, ignored",
    [
        ({"rope_type": "yarn", **YARN, "finetuned": True}, ("finetuned",), "finetuned=True"),
        ({"type": "yarn", **YARN, "low_freq_factor": 2.0}, ("low_freq_factor",), "low_freq_factor=2.0"),
        (
            {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 16},
            ("original_max_position_embeddings",),
            "original_max_position_embeddings=16",
        ),
        ({"type": "dynamic", "factor": 2.0, "beta_fast": 32}, ("beta_fast",), "beta_fast=32"),
        ({"rope_type": "default", "factor": 8.0}, ("factor",), "factor=8.0"),
        ({"type": "linear", "factor": 2.0, "partial_rotary_factor": None}, ("partial_rotary_factor",), ""),
        ({"type": "yarn", **YARN, "attn_factor": 1.0, "mscale": None}, ("attn_factor", "mscale"), ""),
    ],
)
def test_rope_keys_without_effect(
    family: str, spelling: str, rope: dict[str, Any], without: tuple[str, ...], ignored: str
) -> None:
    plain = {key: value for key, value in rope.items() if key not in without}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = read_any(family, **{spelling: rope})
        assert found == read_any(family, **{spelling: plain})
    assert [ignored in str(one.message) for one in told] == ([True] if ignored else [])


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    "rope, message",
    [
        ({"type": "yarn", **YARN, "attn_factor": 1.5}, "attn_factor=1.5 is not supported"),
        ({"type": "yarn", **YARN, "extrapolation_factor": 2}, "extrapolation_factor=2"),
        ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"type": "dynamic", "factor": 2.0, "alpha": 1000.0}, "unknown setting of rope_type 'dynamic' 'alpha'"),
        ({"type": "linear", "factor": "2"}, "factor='2', expected a number above 0"),
        ({"type": "linear", "factor": -2.0}, "factor=-2.0, expected a number above 0"),
        ({"type": "yarn", "factor": None}, "lacks factor"),
        ("linear", "rope_scaling='linear', expected an object"),
    ],
)
def test_rope_keys_with_an_effect(family: str, rope: Any, message: str) -> None:
    if family == "qwen3_next" and "partial_rotary" in message:
        assert read_any(family, rope_scaling=rope).rope.partial == 0.5  # which it has a place for
        return
    with pytest.raises(ValueError, match=message):
        read_any(family, rope_scaling=rope)


@pytest.mark.parametrize("family", [*DECODERS, "gpt2"])
def test_null_counts_as_absent(family: str) -> None:
    """But where it means something of its own (no window, no compression, as many as there are heads)."""
    own = {"num_key_value_heads", "head_dim", "sliding_window", "q_lora_rank", "n_shared_experts", "n_group"}
    own |= {"topk_group", "num_nextn_predict_layers", "num_experts_per_tok"}
    keys = {*FAMILIES[family].defaults, *FAMILIES[family].fixed, *SILENT, "surprise", "rope_scaling"} - own
    whole = read_any(family)
    for key in sorted(keys - {"model_type", *SIZES}):
        assert read_any(family, **{key: None}) == whole, key


@pytest.mark.parametrize("family", [*DECODERS, "gpt2"])
def test_unknown_keys_are_ignored_and_told(family: str) -> None:
    whole = read_any(family)
    with pytest.warns(
        UserWarning, match=rf"{family}: config.json has keys that change nothing here, ignored: surprise=3$"
    ):
        assert read_any(family, surprise=3) == whole
    with pytest.warns(UserWarning, match=r"ignored: attention_dropout=0.1$"):
        assert read_any(family, attention_dropout=0.1) == whole
    silent = {"attention_dropout": 0.0, "use_mrope": False, "nothing": [], "use_cache": True, "architectures": ["X"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_any(family, **silent, transformers_version="5.23.0", bos_token_id=1, pad_token_id=-1) == whole


def test_what_is_ignored_is_told_once() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            read(told_once=True)
    assert len(told) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "post"},
        {"norm_type": "layernorm"},
        {"embed_scale": 2.0},
        {"logit_scale": 0.5},
        {"out_bias": True},
        {"window": 4},
        {"qk_norm": True},
        {"positions": "none"},
        {"ffn": "mlp"},
        {"rope": RopeConfig(interleaved=True)},
        {"rope": RopeConfig(partial=0.5)},
        {"rope": RopeConfig(factor=2.0)},
    ],
)
def test_what_the_family_cannot_say_raises(change: dict[str, Any]) -> None:
    config = read("llama").replace(**change)
    with pytest.raises(ValueError, match=rf"cannot express {next(iter(change))}\b.*family='sagax' can"):
        config.to_hf()
    own = config.replace(family="sagax")
    assert ModelConfig.from_hf(json.loads(json.dumps(own.to_hf()))) == own


def test_unknown_family_raises() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'lamma'. Did you mean 'llama'"):
        read().replace(family="lamma").to_hf()


FOLDERS = ("llama3", "llama32_tied", "qwen2", "qwen25math_theta1e4", "qwen25_yarn", "qwen2_swa", "qwen3")


@pytest.mark.parametrize("folder", [*FOLDERS, "mistral_swa", "gpt2"])
def test_files_of_transformers_survive_the_way_back(shared: Path, folder: str) -> None:
    config = ModelConfig.from_hf(json.loads((shared / "tiny_hf" / folder / "config.json").read_text()))
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


FLOAT = st.floats(1.0, 64.0)
ROPES = st.one_of(
    st.builds(RopeConfig, theta=st.floats(100.0, 1e7)),
    st.builds(RopeConfig, kind=st.sampled_from(["linear", "dynamic"]), factor=FLOAT),
    st.builds(
        RopeConfig,
        kind=st.just("llama3"),
        factor=FLOAT,
        original_length=st.integers(8, 64),
        low_freq_factor=st.floats(0.5, 2.0),
        high_freq_factor=st.floats(3.0, 9.0),
    ),
    st.builds(
        RopeConfig,
        kind=st.just("yarn"),
        factor=FLOAT,
        original_length=st.integers(8, 64),
        attention_factor=st.none() | st.floats(0.5, 2.0),
        beta_fast=st.floats(8.0, 64.0),
        truncate=st.booleans(),
        mscale=st.none() | st.floats(0.5, 1.0),
    ),
    st.builds(
        RopeConfig,
        kind=st.just("longrope"),
        factor=st.floats(1.5, 9.0),
        original_length=st.integers(8, 64),
        short_factor=st.just((1.0, 2.0, 3.0, 4.0)),
        long_factor=st.just((2.0, 3.0, 4.0, 5.0)),
    ),
)


@st.composite
def configs(draw: Any) -> ModelConfig:
    """A config of any family, within what the family can say."""
    family = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gpt2", "sagax"]))
    heads, layers = draw(st.sampled_from([(4, 2), (4, 4), (6, 3)])), draw(st.integers(1, 4))
    bias = draw(st.booleans())
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": draw(st.integers(8, 99)),
        "d_model": 24,
        "n_layers": layers,
        "n_heads": heads[0],
        "d_ff": draw(st.integers(8, 64)),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "tied": draw(st.booleans()),
        "max_length": draw(st.integers(16, 999)),
        "param_dtype": draw(st.sampled_from(["float32", "bfloat16"])),
        "init_std": draw(st.floats(0.001, 0.1)),
    }
    if family == "gpt2":
        fields |= {"ffn": "mlp", "norm_type": "layernorm", "activation": "gelu_tanh", "positions": "learned"}
        return ModelConfig(**fields, qkv_bias=True, out_bias=True, mlp_bias=True)
    fields |= {"n_kv_heads": heads[1], "head_dim": draw(st.sampled_from([8, 16])), "rope": draw(ROPES)}
    if family in ("llama", "qwen3"):
        fields |= {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bias and family == "llama"}
    if family == "qwen2":
        fields["qkv_bias"] = True
    if family == "qwen3":
        fields["qk_norm"] = True
    if family == "mistral":
        fields["window"] = draw(st.none() | st.integers(1, 9))
    if family in ("qwen2", "qwen3"):
        where = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
        windows = tuple(5 if on else None for on in where)
        fields["window"] = windows[0] if len(set(windows)) == 1 else windows
    if family == "sagax":
        fields |= {"norm": draw(st.sampled_from(["pre", "post", "sandwich"])), "embed_scale": draw(FLOAT)}
    return ModelConfig(**fields)


@settings(max_examples=200, deadline=None)
@given(configs())
def test_from_hf_undoes_to_hf(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
