"""The parameters of PEER: banks of queries, product keys and expert tables."""

from __future__ import annotations

import math
from typing import Any

from flax import linen as nn

from model.config import ModelConfig
from model.initial import weights

STATISTICS = ("mean", "var")


def bank_name(name: str, index: int) -> str:
    """The name of a bank's leaf in the parameters: "keys" of the first bank, "keys_1" of the next."""
    return f"{name}_{index}" if index else name


def bank_sizes(config: ModelConfig) -> tuple[int, ...]:
    """How many experts each bank has (per head where heads have their own tables)."""
    return (config.peer.n_experts, *config.peer.banks)


def table_rows(config: ModelConfig, index: int = -1) -> int:
    """Rows of a bank's tables; of the newest bank by default."""
    return bank_sizes(config)[index] * (config.peer.heads if config.peer.separate else 1)


def bank_leaves(config: ModelConfig, index: int) -> dict[str, tuple[Any, tuple[str, ...], tuple[int, ...]]]:
    """Initialiser, logical axes and shape of every leaf of one bank.

    Tables N(0, 1/D) as in product-key memories (1907.05242), except that the `up` rows of a later bank are zero: it
    changes nothing until it has learnt something.
    """
    p, half = config.peer, half_width(config)
    keys, rows = math.isqrt(bank_sizes(config)[index]), table_rows(config, index)
    table = nn.initializers.normal(config.d_model**-0.5)
    key_axes, width = ("peer_heads", "halves", "keys", "key_dim"), p.heads * 2 * half
    leaves = {
        "query": (
            weights(config),
            ("embed", "peer_heads", "halves", "key_dim"),
            (config.d_model, p.heads, 2, half),
        ),
        "keys": (nn.initializers.normal(half**-0.5), key_axes, (1 if p.share_keys else p.heads, 2, keys, half)),
        "down": (table, ("rows", "row_width"), (rows, config.d_model)),
        "up": (nn.initializers.zeros if index else table, ("rows", "row_width"), (rows, config.d_model)),
    }
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    norm = {"query_norm_scale": ones, "query_norm_bias": zeros} if p.query_norm != "none" else {}
    norm |= {"mean": zeros, "var": ones} if p.query_norm == "batch" else {}
    return leaves | {name: (init, ("norm",), (width,)) for name, init in norm.items()}


def half_width(config: ModelConfig) -> int:
    """The width of one half of a query; raises ValueError where both halves together have an odd width."""
    width = config.peer.key_dim or config.d_model
    if width % 2:
        raise ValueError(f"a query of d_model={width} cannot be cut into two halves: give an even peer.key_dim")
    return width // 2
