"""Whether what a config.json says of its model's size can be true of the files, before anything is made of that size;
and whether numbers are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.hf.files import Tensor
from model.hf.qwen3_next import DELTA

# What a family counts -> how its tensors are numbered, with (\d+) for the number.
LAYERS = {"num_hidden_layers": r"(?:^|\.)layers\.(\d+)\."}
COUNTED: dict[str, dict[str, str]] = {
    "gpt2": {"n_layer": r"(?:^|\.)h\.(\d+)\."},
    "huginn_raven": {
        "n_layers_in_prelude": r"(?:^|\.)prelude\.(\d+)\.",
        "n_layers_in_recurrent_block": r"(?:^|\.)core_block\.(\d+)\.",
        "n_layers_in_coda": r"(?:^|\.)coda\.(\d+)\.",
    },
    "sagax": {"n_layers": r"(?:^|\.)layer_(\d+)\."},
}
EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), r"\.experts\.(\d+)\.")
CHUNK = 1 << 20  # numbers looked at together: what is copied of them stays in the processor's cache
# Dtype -> all its bits but the sign, and the exponent of what is not finite.
BITS: dict[str, tuple[type, int, int]] = {
    "float32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
}


def check_counts(described: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ValueError where a config.json counts more layers or experts than the files have tensors of."""
    layers = COUNTED.get(str(described.get("model_type")), LAYERS)
    for key, pattern in (layers | EXPERTS).items():
        value = described.get(key)
        if not names or type(value) is not int:
            continue
        held = 1 + max((int(match[1]) for name in names if (match := re.search(pattern, name))), default=-1)
        if value > held and (held or key in layers):
            what = "layers" if key in layers else "experts"
            raise ValueError(f"{key}={value}, but the files hold tensors of {held} {what}")


def check_sizes(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a size of the config read from `path` that is greater than every axis of every tensor."""
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    latent, delta = (mixer in config.per_layer("mixer") for mixer in ("mla", "gated_delta"))
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        **({"qk_nope_head_dim": config.mla.nope_dim, "v_head_dim": config.mla.v_dim} if latent else {}),
        **({theirs: getattr(config.delta, ours) for theirs, ours in DELTA.items()} if delta else {}),
    }
    for name, size in sizes.items():
        if size > longest:
            raise ValueError(f"{path} asks for {name}={size}, but no axis of any tensor is longer than {longest}")


def all_finite(block: np.ndarray) -> bool:
    """Whether a block of floats holds neither NaN nor an infinite value."""
    unsigned, magnitude, infinite = BITS[block.dtype.name]
    flat: np.ndarray = block.ravel(order="K").view(unsigned)  # in the order of memory: no copy
    return all(
        int((flat[start : start + CHUNK] & unsigned(magnitude)).max()) < infinite
        for start in range(0, flat.size, CHUNK)
    )
