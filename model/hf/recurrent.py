"""What config.json says of recurrent depth: Huginn's (2502.05171; `raven_modeling_minimal.py` of
seal-rg/recurrent-pretraining) and Ouro's (2510.25741; the code beside the weights of ByteDance/Ouro-1.4B).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from model.hf.checks import need
from settings.model import Architecture

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


def ouro_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture that Ouro's keys add to those of any decoder.

    All layers are the core, `total_ut_steps` times, without injection; the final norm ends every iteration.
    `early_exit_step` k, counted from 0, reads out after k + 1 iterations, which those behind it do not change, and goes
    before `early_exit_threshold`. The latter is that of `Exit("gate")`: a pass that is not asked to exit runs them all.
    """
    need(family, values, "total_ut_steps")
    steps, last, threshold = (values[key] for key in ("total_ut_steps", "early_exit_step", "early_exit_threshold"))
    if last is not None and last >= steps:
        raise ValueError(f"{family}: early_exit_step={last}, but total_ut_steps={steps} end with step {steps - 1}")
    threshold = threshold if last is None else 1.0
    if threshold < 1:
        warnings.warn(
            f"{family}: early_exit_threshold={threshold} is kept for those who ask to exit by the gate; unless they"
            f" do, all {steps} iterations run",
            stacklevel=1,
        )
    return {
        "norm": "peri",
        "depth": "recurrent",
        "recurrent": {
            "prelude": 0,
            "core": values["num_hidden_layers"],
            "coda": 0,
            "mean": steps if last is None else last + 1,
            "grad_steps": steps,
            "injection": "none",
            "start": "embedding",
            "readout": "loop",
            "exit_gate": True,
            "exit_threshold": float(threshold),
        },
    }


def ouro_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `ouro_fields` reads."""
    return {"total_ut_steps": config.recurrent.mean, "early_exit_threshold": config.recurrent.exit_threshold}
