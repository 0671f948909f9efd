"""Small models of the families with experts, saved folders of them, and changes to those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from model import Model, hf
from tests.model.common import random_params, tiny

MLA: dict[str, Any] = {
    "mixer": "mla",
    "n_kv_heads": 4,
    "head_dim": 8,
    "rope": {"interleaved": True},
    "mla": {"q_rank": 24, "kv_rank": 16, "nope_dim": 8, "rope_dim": 8, "v_dim": 12},
    "tied": False,
    "ffn": "moe",
}
V3_EXPERTS: dict[str, Any] = {
    "n_experts": 8,
    "top_k": 2,
    "d_expert": 16,
    "n_shared": 1,
    "score": "sigmoid",
    "balance": "bias",
    "first_dense": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"family": "mixtral", "ffn": "moe", "tied": False, "moe": {"n_experts": 4}},
    "qwen2_moe": {
        "family": "qwen2_moe",
        "qkv_bias": True,
        "ffn": ("moe", "glu"),
        "moe": {"n_experts": 6, "d_expert": 24, "n_shared": 1, "d_shared": 20, "shared_gate": True, "normalize": False},
    },
    "qwen3_moe": {"family": "qwen3_moe", "qk_norm": True, "ffn": "moe", "moe": {"n_experts": 4, "d_expert": 24}},
    "gpt_oss": {
        "family": "gpt_oss",
        "ffn": "moe",
        "moe": {"n_experts": 4, "router_bias": True},
        **dict.fromkeys(("sinks", "qkv_bias", "out_bias", "mlp_bias"), True),
        **{"activation": "quick_gelu", "glu_limit": 7.0, "glu_offset": 1.0},
        "window": (4, None),
        "tied": False,
    },
    "qwen3_next": {
        "family": "qwen3_next",
        "mixer": ("gated_delta", "gqa"),
        "delta": {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6},
        **dict.fromkeys(("norm_plus_one", "qk_norm", "out_gate"), True),
        "rope": {"partial": 0.25},
        "ffn": "moe",
        "moe": {"n_experts": 4, "d_expert": 24, "n_shared": 1, "d_shared": 20, "shared_gate": True},
        "tied": False,
    },
    "deepseek_v2": MLA
    | {
        "family": "deepseek_v2",
        "mla": MLA["mla"] | {"q_rank": 0},
        "moe": {"d_expert": 16, "n_shared": 2, "normalize": False, "group_score": "max"},
    },
    "deepseek_v3": MLA | {"family": "deepseek_v3", "moe": V3_EXPERTS},
    "deepseek_v3 with two modules": MLA | {"family": "deepseek_v3", "moe": V3_EXPERTS, "mtp": {"depth": 2}},
    "deepseek_v3, tied": MLA | {"family": "deepseek_v3", "moe": V3_EXPERTS, "mtp": {"depth": 1}, "tied": True},
    "our own": {"ffn": ("moe", "glu"), "moe": {"n_experts": 4, "balance": "bias"}, "mtp": {"depth": 1}},
}
PAIR = "deepseek_v3 with two modules"


def assert_same_tree(got: Any, want: Any) -> None:
    """The same structure, and the same bits in every leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def saved(name: str, folder: Path, **changes: Any) -> tuple[Model, Any]:
    model = tiny(**FAMILIES[name] | changes)
    params = random_params(model)
    hf.save(folder, model, params)
    return model, params


def tamper(folder: Path, change: Callable[[dict[str, np.ndarray]], None], **config: Any) -> Path:
    """Rewrites a saved folder with changed tensors and keys of config.json."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder
