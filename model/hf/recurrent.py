"""Huginn's config.json (2502.05171; `raven_modeling_minimal.py` of seal-rg/recurrent-pretraining)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.architecture import Architecture
from model.hf.checks import need

SIZES = (
    "vocab_size",
    "n_embd",
    "num_attention_heads",
    "intermediate_size",
    "n_layers_in_prelude",
    "n_layers_in_recurrent_block",
    "n_layers_in_coda",
    "mean_recurrence",
)
# Their words for a sampling scheme and for a first state -> ours; going back takes the first.
SCHEMES = {"poisson-lognormal-filling": "lognormal", "poisson-lognormal-fill": "lognormal", "fixed": "fixed"}
STARTS = {"like-init": "random", "zero": "zero", "embed": "embedding"}


def huginn_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture from Huginn's keys."""
    need("huginn_raven", values, *SIZES)
    width, beginning = values["n_embd"], values["init_values"] or {}
    prelude, core, coda = (values[f"n_layers_in_{part}"] for part in ("prelude", "recurrent_block", "coda"))
    return {
        "vocab_size": values["vocab_size"],
        "d_model": width,
        "n_layers": prelude + core + coda,
        "n_heads": values["num_attention_heads"],
        "d_ff": values["intermediate_size"],
        "max_length": values["block_size"],
        "norm": "sandwich",
        "norm_eps": values["norm_eps"],
        "qk_bias": values["qk_bias"],
        "rope": {"theta": float(values["rope_base"]), "interleaved": True},
        "tied": values["tie_word_embeddings"],
        "embed_scale": float(beginning.get("embed_scale", width**0.5)),
        "init": "truncated",
        "init_std": float(beginning.get("std", (2 / (5 * width)) ** 0.5)),
        "depth": "recurrent",
        "recurrent": {
            "prelude": prelude,
            "core": core,
            "coda": coda,
            "mean": values["mean_recurrence"],
            "draw": _ours(values, "sampling_scheme", SCHEMES),
            "grad_steps": values["mean_backprop_depth"],
            "start": _ours(values, "state_init", STARTS),
        },
    }


def huginn_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `huginn_fields` reads."""
    r = config.recurrent
    theirs = lambda words, ours: next((word for word, mine in words.items() if mine == ours), ours)  # noqa: E731
    return {
        "n_embd": config.d_model,
        "n_layers": config.n_layers,
        "n_layers_in_prelude": r.prelude,
        "n_layers_in_recurrent_block": r.core,
        "n_layers_in_coda": r.coda,
        "mean_recurrence": r.mean,
        "mean_backprop_depth": r.grad_steps,
        "sampling_scheme": theirs(SCHEMES, r.draw),
        "state_init": theirs(STARTS, r.start),
        "injection_type": "linear" if r.injection == "concat" else r.injection,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.d_ff,
        "block_size": config.max_length,
        "norm_eps": config.norm_eps,
        "rope_base": config.rope.theta,
        "qk_bias": config.qk_bias,
        "bias": False,
        "block_class_name": "SandwichBlock",
        "init_values": {"std": config.init_std, "embed_scale": config.embed_scale},
    }


def _ours(values: Mapping[str, Any], key: str, words: Mapping[str, str]) -> str:
    if values[key] not in words:
        raise ValueError(f"huginn_raven: {key}={values[key]!r} is not supported, only {', '.join(map(repr, words))}")
    return words[values[key]]
