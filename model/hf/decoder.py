"""Keys of config.json that any decoder has: sizes, attention, windows; and GPT-2's own names for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.hf.checks import need
from model.hf.rope import read_rope, write_rope
from settings.model import Architecture
from settings.setting import unknown

# Names of the Hub -> ours. Going back takes the first name that maps to ours, except that GPT-2 says
# gelu_new.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# These put biases on q, k, v and never on o; the others have one switch for all four.
QKV_ONLY = ("qwen2", "qwen2_moe")
SWITCHED_BIAS = ("llama", "qwen3", "qwen3_moe", "gemma3_text", "qwen3_next")
NO_WINDOW = ("llama", "deepseek_v2", "deepseek_v3", "qwen3_next")
# A switch says whether there is any.
SWITCHED_WINDOW = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "ouro")
# One window for every layer, whatever `layer_types` says.
SAME_WINDOW = ("mixtral", "qwen3_moe")
# The layer types alone say where it is.
BY_TYPES = ("gemma3_text", "gpt_oss")


def decoder_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture that every family but GPT-2 says in the same words."""
    need(family, values, *SIZES)
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
        "qkv_bias": values["qkv_bias" if family in QKV_ONLY else "attention_bias"],
        "out_bias": family not in QKV_ONLY and values["attention_bias"],
        "mlp_bias": values["mlp_bias"],
        "qk_norm": family in ("qwen3", "qwen3_moe"),
        "window": _read_window(family, values),
        "rope": read_rope(family, values),
        "tied": values["tie_word_embeddings"],
        "init_std": values["initializer_range"],
    }


def decoder_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `decoder_fields` reads."""
    values = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        _activation_key(config.family): next(t for t, ours in ACTIVATIONS.items() if ours == config.activation),
        **write_rope(config.family, config.rope),
        **_write_window(config),
    }
    if config.family == "qwen2_moe":
        return values | {"qkv_bias": config.qkv_bias}
    switches = {
        "attention_bias": config.qkv_bias and config.family in SWITCHED_BIAS,
        "mlp_bias": config.mlp_bias and config.family == "llama",
    }
    return values | {key: value for key, value in switches.items() if value or config.family == "llama"}


def gpt2_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture from GPT-2's keys."""
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


def gpt2_values(config: Architecture) -> dict[str, Any]:
    """GPT-2's keys for what `gpt2_fields` reads."""
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


def _activation_key(family: str) -> str:
    return "hidden_activation" if family == "gemma3_text" else "hidden_act"


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(unknown("hidden_act", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def _read_window(family: str, values: Mapping[str, Any]) -> int | tuple[int | None, ...] | None:
    if family in NO_WINDOW:
        return None
    layers, width = values["num_hidden_layers"], values.get("sliding_window")
    if family in SWITCHED_WINDOW and not values["use_sliding_window"]:
        width = None
    types = None if family in SAME_WINDOW else values.get("layer_types")
    if types is None:
        windows = tuple(width if _slides(family, i, values) else None for i in range(layers))
    else:
        windows = tuple(_layer_window(family, kind, width) for kind in types)
    return windows[0] if len(set(windows)) == 1 and len(windows) == layers else windows


def _slides(family: str, layer: int, values: Mapping[str, Any]) -> bool:
    """Whether a layer has the window where no list of layer types says so."""
    if family in ("mistral", *SAME_WINDOW):
        return True
    if family == "gpt_oss":
        return layer % 2 == 0
    if family == "gemma3_text":
        return (layer + 1) % values["sliding_window_pattern"] > 0
    if family == "qwen2_moe":
        return layer % 2 == 0 and layer < values["max_window_layers"]
    return layer >= values["max_window_layers"]


def _layer_window(family: str, kind: str, width: int | None) -> int | None:
    if kind == "full_attention" and not (family == "mistral" and width):
        return None
    if kind == "sliding_attention" and width:
        return width
    if kind in ("full_attention", "sliding_attention"):
        raise ValueError(f"{family}: layer type {kind!r} contradicts sliding_window={width} (as it is switched)")
    raise ValueError(unknown("layer type", kind, ("full_attention", "sliding_attention")))


def _write_window(config: Architecture) -> dict[str, Any]:
    windows, family = config.per_layer("window"), config.family
    width = max((window for window in windows if window), default=None)
    if family in NO_WINDOW:
        return {}
    if family in ("mistral", "mixtral"):
        return {"sliding_window": width}
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    if family in BY_TYPES:
        return {"sliding_window": width, "layer_types": types}
    values = {"use_sliding_window": width is not None, "sliding_window": width}
    if family in SAME_WINDOW:
        return values
    return {
        **values,
        "max_window_layers": next((i for i, window in enumerate(windows) if window), config.n_layers),
        "layer_types": types,
    }
