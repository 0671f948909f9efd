"""`config.json` of the Hub <-> ModelConfig, one description per family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from model.config import ModelConfig, RopeConfig, unknown

# What a key means when the file does not name it: the defaults of transformers, which differ from family to
# family.
LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
QWEN2_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
GPT2_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
LLAMA_FIXED: dict[str, Any] = {"partial_rotary_factor": 1.0, "is_causal": True, "quantization_config": None}


class Family(NamedTuple):
    """How one `model_type` is read: its class, defaults, and the settings that must have one value (or be
    absent).
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = LLAMA_FIXED
    constants: Mapping[str, Any] = {}


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", LLAMA_DEFAULTS),
    "mistral": Family(
        "MistralForCausalLM",
        LLAMA_DEFAULTS
        | {
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "layer_types": None,
        },
        constants={"attention_bias": False, "mlp_bias": False},
    ),
    "qwen2": Family("Qwen2ForCausalLM", QWEN2_DEFAULTS, constants={"mlp_bias": False}),
    "qwen3": Family("Qwen3ForCausalLM", QWEN2_DEFAULTS | {"head_dim": 128}, constants={"mlp_bias": False}),
    "gpt2": Family(
        "GPT2LMHeadModel",
        GPT2_DEFAULTS,
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "is_causal": True,
            "quantization_config": None,
        },
    ),
}
MODEL_TYPES = (*FAMILIES, "sagax")

# Names of the Hub -> ours. Going back takes the first name that maps to ours, except that GPT-2 says
# gelu_new.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# Per rope type: keys that must be there, and keys that may be; the value is the field of RopeConfig.
ROPE_NAMES = {"original_max_position_embeddings": "original_length"}
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
}
# How the network is run, not what it computes: no config.json speaks of these.
EXECUTION = ("dtype", "remat")


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Builds a ModelConfig from the dict of a `config.json`, in either spelling of its rope settings.

    Raises ValueError for a `model_type` we do not know, for a missing size, and for any setting whose maths
    we lack.
    """
    family = config.get("model_type")
    if family == "sagax":
        return ModelConfig.from_dict({key: value for key, value in config.items() if key != "model_type"})
    if family not in FAMILIES:
        raise ValueError(unknown("model_type", family, MODEL_TYPES))
    known = FAMILIES[family]
    _check_fixed(family, config, known.fixed)
    values = {**known.defaults, **config, **known.constants}
    fields = _gpt2_fields(values) if family == "gpt2" else _llama_fields(family, values)
    return ModelConfig(**fields, param_dtype=_stored_dtype(config), family=family)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The dict of a `config.json` of this config's family, in the older spelling, which every reader
    understands.

    Raises ValueError where the family has no word for a setting, naming the setting.
    """
    if config.family == "sagax":
        return {"model_type": "sagax", **config.to_dict()}
    if config.family not in FAMILIES:
        raise ValueError(unknown("family", config.family, MODEL_TYPES))
    values = _gpt2_values(config) if config.family == "gpt2" else _llama_values(config)
    values = {
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "torch_dtype": config.param_dtype,
        **values,
    }
    _check_expressible(config, from_hf(values))
    return values


def _check_fixed(family: str, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{family}: {key}={config[key]!r} is not supported, only {value!r}")


def _check_expressible(config: ModelConfig, back: ModelConfig) -> None:
    """The family can say what it reads back unchanged; anything else would be lost without a word."""
    lost = []
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        slot = name in ("mixer", "ffn", "window")
        mine, theirs = (c.per_layer(name) if slot else getattr(c, name) for c in (config, back))
        if name not in EXECUTION and mine != theirs:
            lost.append(f"{name}={getattr(config, name)!r} (would be read back as {getattr(back, name)!r})")
    if lost:
        raise ValueError(f"family {config.family!r} cannot express {', '.join(lost)}; family='sagax' can")


def _stored_dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("torch_dtype") or config.get("dtype") or "float32").removeprefix("torch.")


def _need(family: str, values: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise ValueError(f"{family}: config.json lacks {', '.join(missing)}")


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(unknown("hidden_act", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def _llama_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    _need(
        family,
        values,
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    return {
        "vocab_size": values["vocab_size"],
        "d_model": values["hidden_size"],
        "n_layers": values["num_hidden_layers"],
        "n_heads": values["num_attention_heads"],
        "d_ff": values["intermediate_size"],
        "n_kv_heads": values["num_key_value_heads"],
        "head_dim": values["head_dim"],
        "max_length": values["max_position_embeddings"],
        "norm_eps": values["rms_norm_eps"],
        "activation": _activation(values["hidden_act"]),
        # Qwen2 hard-codes biases on q, k, v and none on o; the others put the switch on all four.
        "qkv_bias": family == "qwen2" or values["attention_bias"],
        "out_bias": family != "qwen2" and values["attention_bias"],
        "mlp_bias": values["mlp_bias"],
        "qk_norm": family == "qwen3",
        "window": _read_window(family, values),
        "rope": _read_rope(family, values),
        "tied": values["tie_word_embeddings"],
        "init_std": values["initializer_range"],
    }


def _llama_values(config: ModelConfig) -> dict[str, Any]:
    values = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        **_write_rope(config.rope),
        **_write_window(config),
    }
    switches = {
        "attention_bias": config.qkv_bias and config.family in ("llama", "qwen3"),
        "mlp_bias": config.mlp_bias and config.family == "llama",
    }
    return values | {key: value for key, value in switches.items() if value or config.family == "llama"}


def _gpt2_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": values["vocab_size"],
        "d_model": values["n_embd"],
        "n_layers": values["n_layer"],
        "n_heads": values["n_head"],
        "d_ff": values["n_inner"] or 4 * values["n_embd"],
        "max_length": values["n_positions"],
        "ffn": "mlp",
        "norm_type": "layernorm",
        "norm_eps": values["layer_norm_epsilon"],
        "activation": _activation(values["activation_function"]),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "positions": "learned",
        "tied": values["tie_word_embeddings"],
        "init_std": values["initializer_range"],
    }


def _gpt2_values(config: ModelConfig) -> dict[str, Any]:
    tanh = config.activation == "gelu_tanh"
    return {
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new" if tanh else config.activation,
    }


def _read_window(family: str, values: Mapping[str, Any]) -> int | tuple[int | None, ...] | None:
    layers, width, types = (
        values["num_hidden_layers"],
        values.get("sliding_window"),
        values.get("layer_types"),
    )
    if family == "llama":
        return None
    if family != "mistral" and not values["use_sliding_window"]:
        width = None
    if types is None:
        first = 0 if family == "mistral" else values["max_window_layers"]
        windows = tuple(width if i >= first else None for i in range(layers))
    else:
        windows = tuple(_layer_window(family, kind, width) for kind in types)
    return windows[0] if len(set(windows)) == 1 and len(windows) == layers else windows


def _layer_window(family: str, kind: str, width: int | None) -> int | None:
    if kind == "full_attention" and not (family == "mistral" and width):
        return None
    if kind == "sliding_attention" and width:
        return width
    if kind in ("full_attention", "sliding_attention"):
        raise ValueError(f"{family}: layer type {kind!r} contradicts sliding_window={width} (as it is switched)")
    raise ValueError(unknown("layer type", kind, ("full_attention", "sliding_attention")))


def _write_window(config: ModelConfig) -> dict[str, Any]:
    windows = config.per_layer("window")
    width = max((window for window in windows if window), default=None)
    if config.family == "llama":
        return {}
    if config.family == "mistral":
        return {"sliding_window": width}
    return {
        "use_sliding_window": width is not None,
        "sliding_window": width,
        "max_window_layers": next((i for i, window in enumerate(windows) if window), config.n_layers),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _read_rope(family: str, values: Mapping[str, Any]) -> RopeConfig:
    given = _rope_values(family, values)
    theta = given.pop("rope_theta", None) or values.get("rope_theta") or 10_000.0
    older = given.pop("type", None)
    kind = given.pop("rope_type", None) or older or "default"
    if kind not in ROPE_KEYS:
        raise ValueError(unknown("rope_type", kind, ROPE_KEYS))
    given = {key: value for key, value in given.items() if value is not None}
    _check_fixed(family, given, {"partial_rotary_factor": 1.0})
    given.pop("partial_rotary_factor", None)
    required, optional = ROPE_KEYS[kind]
    for key in given:
        if key not in (*required, *optional):
            raise ValueError(unknown(f"setting of rope_type {kind!r}", key, (*required, *optional)))
    _need(f"{family}, rope_type {kind!r}", given, *required)
    if "original_max_position_embeddings" in optional:
        _set_original(given, values)
    fields = {ROPE_NAMES.get(key, key): value for key, value in given.items()}
    return RopeConfig(kind=kind, theta=float(theta), **fields)


def _rope_values(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings as one flat dict, whichever spelling holds them."""
    given = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    if not nested:
        return given
    if any(value != nested[0] for value in nested) or len(nested) != len(given):
        raise ValueError(f"{family}: rope settings that differ by layer type are not supported, found {given}")
    return dict(nested[0])


def _set_original(given: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Fills in the trained length, and for longrope the factor, as transformers does."""
    key, longest = "original_max_position_embeddings", values["max_position_embeddings"]
    given[key] = values.get(key) or given.get(key) or longest
    if "long_factor" in given:
        given.setdefault("factor", longest / given[key])
        if given["factor"] <= 1:
            given.setdefault("attention_factor", 1.0)


def _write_rope(rope: RopeConfig) -> dict[str, Any]:
    required, optional = ROPE_KEYS[rope.kind]
    settings = {key: getattr(rope, ROPE_NAMES.get(key, key)) for key in (*required, *optional)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    scaling = {"rope_type": rope.kind, **settings} if rope.kind != "default" else None
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
