"""`config.json` of the Hub <-> Architecture, one description per family."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from model.hf.checks import check_closed, check_fixed, quantisation, respell
from model.hf.decoder import SIZES, decoder_fields, decoder_values, gpt2_fields, gpt2_values
from model.hf.experts import EXPERT_FAMILIES, expert_fields, expert_values
from model.hf.families import FAMILIES, MODEL_TYPES, UNSUPPORTED, Family
from model.hf.gemma import gemma3_fields, gemma3_values
from model.hf.gpt_oss import gpt_oss_fields, gpt_oss_values
from model.hf.qwen3_next import qwen3_next_fields, qwen3_next_values
from model.hf.recurrent import SIZES as HUGINN_SIZES
from model.hf.recurrent import huginn_fields, huginn_values, ouro_fields, ouro_values
from model.hf.rope import ignored_rope
from model.hf.scores import score_fields, score_values
from model.hf.values import check_values, listed, without_effect, without_nulls
from settings.model import Architecture
from settings.setting import unknown

# How the network is run and trained, not what it computes: no config.json need speak of these.
EXECUTION = (
    "dtype",
    "remat",
    "layers",
    "attention",
    "precision",
    "moe.dispatch",
    "moe.bias_rate",
    "moe.z_weight",
    "mtp.weight",
    "recurrent.kv_slots",
    "recurrent.grad_steps",
    "recurrent.exit_stage",
    "recurrent.exit_entropy",
    "recurrent.exit_slope",
    "recurrent.exit_margin",
    "delta.chunk",
)
# Families whose keys have names of their own: how they are read and written.
OWN_KEYS = {"gpt2": (gpt2_fields, gpt2_values), "huginn_raven": (huginn_fields, huginn_values)}
# What families add to the keys of any decoder: how it is read and written.
MORE_KEYS = {
    **dict.fromkeys(EXPERT_FAMILIES, (expert_fields, expert_values)),
    "gemma3_text": (gemma3_fields, gemma3_values),
    "gpt_oss": (gpt_oss_fields, gpt_oss_values),
    "ouro": (ouro_fields, ouro_values),
    "qwen3_next": (qwen3_next_fields, qwen3_next_values),
}
# Parts that matter only where one of their slots is used.
USED_BY = {
    "mla": {"mla"},
    "moe": {"moe"},
    "peer": {"peer"},
    "rnn": {"mingru", "minlstm"},
    "delta": {"gated_delta"},
    "recurrent": {"recurrent"},
}


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an Architecture that the dict of a `config.json` says, in either spelling of its settings.

    Null counts as absent. Keys that change nothing are ignored, and a warning names those that look as if they did.
    Raises ValueError for a `model_type` we do not know, for a missing size, for a value of the wrong kind, and for
    any setting whose maths we lack.
    """
    family = config.get("model_type")
    if family == "sagax":
        return {key: value for key, value in config.items() if key != "model_type"}
    if not isinstance(family, str) or family not in {*FAMILIES, *UNSUPPORTED}:
        raise ValueError(unknown("model_type", family, MODEL_TYPES))
    if family in UNSUPPORTED:
        raise ValueError(f"model_type {family!r} is not supported: {UNSUPPORTED[family]}")
    known = FAMILIES[family]
    config = without_nulls(config, known.nullable)
    check_values(family, config)
    check_closed(family, config, known.closed, {*known.defaults, *known.fixed})
    _tell_ignored(family, known, config)
    config = respell(family, config, known.aliases)
    check_fixed(family, config, known.fixed)
    quantisation(config)
    values = {**known.defaults, **config, **known.constants}
    fields = OWN_KEYS[family][0](values) if family in OWN_KEYS else decoder_fields(family, values)
    if family in MORE_KEYS:
        fields |= MORE_KEYS[family][0](family, values)
    return {**fields, **score_fields(config), "param_dtype": stated_dtype(config) or "float32", "family": family}


def _tell_ignored(family: str, known: Family, config: Mapping[str, Any]) -> None:
    """Warns of keys without effect; always from this line, so that Python tells each config of a process once."""
    read = {*known.defaults, *known.fixed, *known.aliases, *known.aliases.values(), *SIZES, *HUGINN_SIZES}
    ignored = without_effect(config, read, known.constants)
    ignored += [] if family in OWN_KEYS else ignored_rope(family, config)
    if ignored:
        warnings.warn(
            f"{family}: config.json has keys that change nothing here, ignored: {listed(ignored)}", stacklevel=1
        )


def to_hf(config: Architecture) -> dict[str, Any]:
    """The dict of a `config.json` of this config's family, in the older spelling, which every reader
    understands.

    Raises ValueError where the family has no word for a setting, naming the setting.
    """
    if config.family == "sagax":
        return {"model_type": "sagax", **config.to_dict()}
    if config.family not in FAMILIES:
        raise ValueError(unknown("family", config.family, MODEL_TYPES))
    values = OWN_KEYS[config.family][1](config) if config.family in OWN_KEYS else decoder_values(config)
    if config.family in MORE_KEYS:
        values |= MORE_KEYS[config.family][1](config)
    values = {
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "torch_dtype": config.param_dtype,
        **values,
        **score_values(config, FAMILIES[config.family].architecture),
    }
    _check_expressible(config, type(config)(**fields_of(values)))
    return values


def _check_expressible(config: Architecture, back: Architecture) -> None:
    """The family can say what it reads back unchanged; anything else would be lost without a word."""
    mine, theirs = _computed(config), _computed(back)
    lost = [
        f"{name}={mine.get(name)!r} (would be read back as {theirs.get(name)!r})"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]
    if lost:
        raise ValueError(f"family {config.family!r} cannot express {listed(lost)}; family='sagax' can")


def _computed(config: Architecture) -> dict[str, Any]:
    """What the network computes, by name: slots per layer, the parts that a layer uses, defaults filled in."""
    slots = {name: config.per_layer(name) for name in ("mixer", "ffn", "window")}
    used = {*slots["mixer"], *slots["ffn"], config.depth}
    computed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = slots.get(field.name, getattr(config, field.name))
        if field.name == "delta" and "gated_delta" in used:
            value = config.delta.filled(config.n_heads, config.head_dim)
        if not dataclasses.is_dataclass(value):
            computed[field.name] = value
        elif USED_BY.get(field.name, used) & used:
            computed |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in dataclasses.fields(value)}
    if "moe" in used:
        computed |= _computed_experts(config)
    computed["query_scalar"] = config.query_scalar or config.head_dim
    heads = () if "gqa" in used else ("n_kv_heads", "head_dim", "query_scalar")
    dense = () if used & {"glu", "mlp"} else ("d_ff",)
    return {name: value for name, value in computed.items() if name not in {*EXECUTION, *heads, *dense}}


def _computed_experts(config: Architecture) -> dict[str, Any]:
    moe = config.moe
    # Named None: said by another name (`ffn` has the placement, d_shared the width), or of no effect.
    silent = ("moe.first_dense", "moe.every", "moe.n_shared", *(() if moe.n_groups > 1 else ("moe.group_score",)))
    return {
        **dict.fromkeys(silent),
        "moe.d_expert": moe.expert_width(config.d_ff),
        "moe.d_shared": moe.shared_width(config.d_ff),
        "moe.aux_weight": float(f"{moe.loss_weight:.9g}"),
    }


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a config.json names for its weights, in either spelling; None where it names none."""
    named = config.get("torch_dtype") or config.get("dtype")
    return str(named).removeprefix("torch.") if named else None
