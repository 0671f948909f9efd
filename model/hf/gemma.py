"""Keys of config.json that the text models of Gemma 3 (2503.19786) add to those of any decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settings.model import Architecture


def gemma3_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture besides those of any decoder, or in their place."""
    del family
    return {
        "norm": "peri",
        "norm_plus_one": True,
        "qk_norm": True,
        "query_scalar": values["query_pre_attn_scalar"],
        "embed_scale": values["hidden_size"] ** 0.5,
    }


def gemma3_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `gemma3_fields` reads."""
    return {"query_pre_attn_scalar": config.query_scalar or config.head_dim}
