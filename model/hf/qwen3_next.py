"""Keys of config.json that Qwen3-Next adds to those of decoders with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.hf.checks import need
from model.hf.experts import expert_fields, expert_values
from settings.model import Architecture
from settings.setting import unknown

MIXERS = {"linear_attention": "gated_delta", "full_attention": "gqa"}
# Their words -> the fields of DeltaConfig.
DELTA = {
    "linear_num_key_heads": "key_heads",
    "linear_num_value_heads": "value_heads",
    "linear_key_head_dim": "key_dim",
    "linear_value_head_dim": "value_dim",
    "linear_conv_kernel_dim": "conv",
}


def qwen3_next_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture besides those of any decoder, or in their place."""
    need(family, values, *DELTA)
    mixers = _mixers(values)
    return {
        **expert_fields(family, values),
        "mixer": mixers[0] if len(set(mixers)) == 1 and len(mixers) == values["num_hidden_layers"] else mixers,
        "norm_plus_one": True,
        "qk_norm": True,
        "out_gate": True,
        "delta": {ours: values[theirs] for theirs, ours in DELTA.items()},
    }


def qwen3_next_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `qwen3_next_fields` reads."""
    delta = config.delta.filled(config.n_heads, config.head_dim)
    words = {ours: theirs for theirs, ours in MIXERS.items()}
    return {
        **expert_values(config),
        **{theirs: getattr(delta, ours) for theirs, ours in DELTA.items()},
        "layer_types": [words.get(mixer, mixer) for mixer in config.per_layer("mixer")],
    }


def _mixers(values: Mapping[str, Any]) -> tuple[str, ...]:
    """By the types of the layers, or, where no list says them, attention every so many."""
    every, kinds = values["full_attention_interval"], values["layer_types"]
    if kinds is None:
        return tuple("gated_delta" if (i + 1) % every else "gqa" for i in range(values["num_hidden_layers"]))
    for kind in kinds:
        if kind not in MIXERS:
            raise ValueError(unknown("layer type", kind, MIXERS))
    return tuple(MIXERS[kind] for kind in kinds)
