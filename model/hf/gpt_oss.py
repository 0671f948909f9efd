"""Keys of config.json that gpt-oss (2508.10925) adds to those of decoders with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.hf.experts import expert_fields, expert_values
from settings.model import Architecture


def gpt_oss_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture besides those of any decoder, or in their place."""
    fields = expert_fields(family, values)
    return {
        **fields,
        "moe": {**fields["moe"], "router_bias": True},
        "sinks": True,
        # (up + 1) x gate x sigmoid(1.702 gate), whatever hidden_act says.
        "activation": "quick_gelu",
        "glu_limit": values["swiglu_limit"],
        "glu_offset": 1.0,
    }


def gpt_oss_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `gpt_oss_fields` reads."""
    return {
        **expert_values(config),
        "attention_bias": config.qkv_bias,
        "hidden_act": "silu",
        "swiglu_limit": config.glu_limit,
    }
