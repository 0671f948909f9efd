"""Shared by the tests of every combination of slots: models, supervised batches, rollouts."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.batch import TokenRows
from model import Model, ModelConfig, build
from rl.batch import RolloutRows, training_batch
from tests.sampled import generate
from tests.trunk import TINY, prompts_of
from train.optimizer import optimizer_config
from train.sparse_tables import SparseTables, sparse_tables_of

MIXERS = ("gqa", "gqa+", "mla", "mingru", "minlstm", "gated_delta")
FEED_FORWARDS = ("glu", "moe", "peer")
GRID = [
    *itertools.product(MIXERS, FEED_FORWARDS, (0, 1), ("stack",)),
    *itertools.product(MIXERS, FEED_FORWARDS, (1,), ("recurrent",)),
]
PARTS: dict[str, Any] = {
    "mla": {"q_rank": 24, "kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "v_dim": 8},
    "moe": {"n_experts": 4, "top_k": 2, "d_expert": 16, "n_shared": 1, "score": "sigmoid", "balance": "bias"},
    "peer": {"n_experts": 64, "heads": 2, "top_k": 3, "key_dim": 16},
    "rnn": {"expansion": 1.5, "conv": 3},
    "delta": {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6, "conv": 3, "chunk": 4},
}
# "gqa+": attention and what is around it with every setting that another model than the plainest may have.
MORE: dict[str, dict[str, Any]] = {
    "gqa+": {
        "mixer": "gqa",
        **dict.fromkeys(("sinks", "out_gate", "qk_norm", "norm_plus_one", "qkv_bias", "out_bias", "mlp_bias"), True),
        "norm": "peri",
        "query_scalar": 12.0,
        "window": 5,
        "rope": {"local_theta": 300.0, "partial": 0.5},
        "activation": "quick_gelu",
        "glu_limit": 1.0,
        "glu_offset": 1.0,
        "moe": {**PARTS["moe"], "router_bias": True},
    }
}
RECURRENT = {
    "n_layers": 3,
    "depth": "recurrent",
    "norm": "sandwich",
    "recurrent": {"mean": 3, "grad_steps": 2, "draw": "lognormal"},
}
SCANNED = {"n_layers": 2, "layers": "scanned", "remat": "full"}
DEPTHS = np.array([1, 4, 2, 3, 2, 4, 1, 3])  # of the rollout's samples
OPTIMIZER = {"lr": 1e-2, "eps": 1e-3}
PROMPTS = prompts_of(3, 5, 4, 2)
T = 8


class Case(NamedTuple):
    """One combination, with its parameters as training starts from them."""

    model: Model
    params: Any
    rows: SparseTables | None


@functools.lru_cache(maxsize=1)
def case_of(mixer: str, ffn: str, ahead: int, depth: str) -> Case:
    """`depth` is "stack", "scanned" (a stack of two like layers as a loop, rematerialised) or "recurrent"."""
    settings = TINY | PARTS | {"n_layers": 1, "mixer": mixer, "ffn": ffn, "mtp": {"depth": ahead}}
    settings |= MORE.get(mixer, {})
    settings |= {"recurrent": RECURRENT, "scanned": SCANNED}.get(depth, {})
    model = build(ModelConfig.from_dict(settings))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key in ("scale", "query_norm_scale", "var"):
            return jnp.asarray(1 + 0.1 * noise, leaf.dtype)
        return jnp.asarray((1.0 if path[-1].key == "embed" else 0.2) * noise, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, model.abstract())
    return Case(model, params, sparse_tables_of(model, optimizer_config(OPTIMIZER), 10))


def demonstrations(rows: int = 8, length: int = 12) -> TokenRows:
    """Rows of two packed documents and some padding."""
    rng = np.random.default_rng(1)
    column = np.arange(length)
    first, end = rng.integers(3, 6, (rows, 1)), rng.integers(8, length + 1, (rows, 1))
    segments = np.where(column < first, 1, np.where(column < end, 2, 0))
    positions = np.where(segments == 2, column - first, np.where(segments == 1, column, 0))
    tokens = rng.integers(2, TINY["vocab_size"], (rows, length)) * (segments > 0)
    ints = {"tokens": tokens, "positions": positions, "segments": segments}
    return TokenRows(**{k: v.astype(np.int32) for k, v in ints.items()}, mask=(segments > 0).astype(np.float32))


def rollout_batch(case: Case, params: Any) -> RolloutRows:
    """Two samples of each prompt as a GRPO batch, with made-up advantages."""
    options: dict[str, Any] = {"max_new_tokens": T, "n": 2, "slots": 5, "stop": (2, 3)}
    if case.model.config.depth == "recurrent":
        options["depth"] = DEPTHS
    rollout = generate(case.model, params, PROMPTS, jax.random.key(0), **options)
    advantages = np.random.default_rng(2).standard_normal(len(rollout.tokens))
    return training_batch(rollout, advantages)
