"""Rope settings of a config.json, in either spelling, <-> RopeConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.hf.checks import check_fixed, need
from model.hf.families import FAMILIES
from model.hf.values import NUMBER, NUMBERS, POSITIVE, SHARE, SIZE, SWITCH, check_values
from settings.model_parts import RopeConfig
from settings.setting import unknown

# Per rope type: keys that must be there, and keys that may be; the value is the field of RopeConfig.
ROPE_NAMES = {"original_max_position_embeddings": "original_length"}
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
}
EVERY_KEY = {"rope_theta", *(key for required, optional in ROPE_KEYS.values() for key in (*required, *optional))}
LAYER_TYPES = ("full_attention", "sliding_attention")
LOCAL = ("gemma3_text",)  # layers with a window have a base of their own
PARTIAL = ("qwen3_next",)  # a share of each head is rotated
UNREAD = ("finetuned",)  # of the first YaRN releases, a note for people
# What we lack, at the one value where it changes nothing.
NEUTRAL = {"partial_rotary_factor": 1.0, "attn_factor": 1.0, "extrapolation_factor": 1.0}
KINDS = {
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    "partial_rotary_factor": SHARE,
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), NUMBER),
    **dict.fromkeys(("short_factor", "long_factor"), NUMBERS),
    "original_max_position_embeddings": SIZE,
    "truncate": SWITCH,
}


def read_rope(family: str, values: Mapping[str, Any]) -> RopeConfig:
    """From `rope_theta` with `rope_scaling`, or from `rope_parameters`; raises for a setting we lack.

    Settings of another rope type, and those that nothing reads, change nothing: `ignored_rope` lists them.
    """
    kind, rope = _settings(family, values)
    theta = rope.pop("rope_theta", None) or values["rope_theta"]
    required, optional = ROPE_KEYS[kind]
    rope = {key: value for key, value in rope.items() if key in (*required, *optional)}
    need(f"{family}, rope_type {kind!r}", rope, *required)
    check_values(f"{family}, rope_type {kind!r}", {"rope_theta": theta, **rope}, KINDS)
    if "original_max_position_embeddings" in optional:
        _set_original(rope, values)
    fields = {ROPE_NAMES.get(key, key): value for key, value in rope.items()}
    interleaved = family.startswith("deepseek") and bool(values["rope_interleave"])
    if family in LOCAL:
        fields["local_theta"] = _local_theta(family, values)
    if family in PARTIAL:
        fields["partial"] = _partial(family, values)
    return RopeConfig(kind=kind, theta=float(theta), interleaved=interleaved, **fields)


def ignored_rope(family: str, values: Mapping[str, Any]) -> list[str]:
    """The rope settings, each with its value, that change nothing with this rope type."""
    kind, rope = _settings(family, values)
    read = ("rope_theta", "partial_rotary_factor", *ROPE_KEYS[kind][0], *ROPE_KEYS[kind][1])
    return [f"rope {kind!r}: {key}={value!r}" for key, value in rope.items() if key not in read]


def write_rope(family: str, rope: RopeConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the older spelling, and what else the family says of its rotation."""
    required, optional = ROPE_KEYS[rope.kind]
    settings = {key: getattr(rope, ROPE_NAMES.get(key, key)) for key in (*required, *optional)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    # Where an absent scaling means the family's own, the absence of any is said.
    said = rope.kind != "default" or "rope_parameters" in FAMILIES[family].defaults
    scaling = {"rope_type": rope.kind, **settings} if said else None
    more = {"rope_local_base_freq": rope.local_theta or rope.theta} if family in LOCAL else {}
    more |= {"partial_rotary_factor": rope.partial} if family in PARTIAL else {}
    return {"rope_theta": rope.theta, "rope_scaling": scaling, **more}


def _settings(family: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The rope type and its settings without nulls; raises for a type or a setting that we cannot compute."""
    rope = _rope_values(family, values)
    older = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or older or "default"
    if kind not in ROPE_KEYS:
        raise ValueError(unknown("rope_type", kind, ROPE_KEYS))
    if family in PARTIAL:
        rope.pop("partial_rotary_factor", None)
    check_fixed(family, rope, NEUTRAL)
    known = {*EVERY_KEY, *UNREAD, *NEUTRAL}
    for key in rope:
        if key not in known:
            raise ValueError(unknown(f"setting of rope_type {kind!r}", key, sum(ROPE_KEYS[kind], ())))
    return kind, {key: value for key, value in rope.items() if key not in NEUTRAL}


def _rope_values(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings as one flat dict, whichever spelling holds them; of families in LOCAL those of full layers."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    rope = {key: value for key, value in rope.items() if value is not None}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    if family in LOCAL and nested and set(rope) <= set(LAYER_TYPES) and len(nested) == len(rope):
        nested = [rope.get("full_attention", {})]
    elif nested and (any(value != nested[0] for value in nested) or len(nested) != len(rope)):
        raise ValueError(f"{family}: rope settings that differ by layer type are not supported, found {rope}")
    flat = nested[0] if nested else rope
    return {key: value for key, value in flat.items() if value is not None}


def _partial(family: str, values: Mapping[str, Any]) -> float:
    """The share of a head that is rotated, in either spelling."""
    share = _rope_values(family, values).get("partial_rotary_factor", values["partial_rotary_factor"])
    check_values(family, {"partial_rotary_factor": share}, KINDS)
    return float(share)


def _local_theta(family: str, values: Mapping[str, Any]) -> float:
    """The base of layers with a window, whose rotation is a plain one."""
    rope = (values.get("rope_parameters") or {}).get("sliding_attention") or {}
    rope = {key: value for key, value in rope.items() if value is not None}
    theta = rope.pop("rope_theta", None) or values["rope_local_base_freq"]
    if rope.pop("rope_type", "default") != "default" or rope:
        raise ValueError(
            f"{family}: rope settings of sliding_attention are not supported but for rope_type 'default' and"
            f" rope_theta, found {values['rope_parameters']['sliding_attention']}"
        )
    check_values(f"{family}, sliding_attention", {"rope_theta": theta}, KINDS)
    return float(theta)


def _set_original(rope: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Fills in the trained length, and for longrope the factor, as transformers does."""
    key, longest = "original_max_position_embeddings", values["max_position_embeddings"]
    rope[key] = values.get(key) or rope.get(key) or longest
    if "long_factor" in rope:
        rope.setdefault("factor", longest / rope[key])
        if rope["factor"] <= 1:
            rope.setdefault("attention_factor", 1.0)
