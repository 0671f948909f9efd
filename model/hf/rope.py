"""Rope settings of a config.json, in either spelling, <-> RopeConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.hf.checks import check_fixed, need
from model.hf.values import NUMBER, NUMBERS, POSITIVE, SIZE, SWITCH, check_values
from model.parts import RopeConfig, unknown

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
UNREAD = ("finetuned",)  # of the first YaRN releases, a note for people
# What we lack, at the one value where it changes nothing.
NEUTRAL = {"partial_rotary_factor": 1.0, "attn_factor": 1.0, "extrapolation_factor": 1.0}
KINDS = {
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), NUMBER),
    **dict.fromkeys(("short_factor", "long_factor"), NUMBERS),
    "original_max_position_embeddings": SIZE,
    "truncate": SWITCH,
}


def read_rope(family: str, values: Mapping[str, Any]) -> RopeConfig:
    """From `rope_theta` with `rope_scaling`, or from `rope_parameters`; raises for a setting we lack.

    Settings of another rope type, and those that nothing reads, change nothing: `ignored_rope` lists them.
    """
    kind, given = _settings(family, values)
    theta = given.pop("rope_theta", None) or values["rope_theta"]
    required, optional = ROPE_KEYS[kind]
    given = {key: value for key, value in given.items() if key in (*required, *optional)}
    need(f"{family}, rope_type {kind!r}", given, *required)
    check_values(f"{family}, rope_type {kind!r}", {"rope_theta": theta, **given}, KINDS)
    if "original_max_position_embeddings" in optional:
        _set_original(given, values)
    fields = {ROPE_NAMES.get(key, key): value for key, value in given.items()}
    interleaved = family.startswith("deepseek") and bool(values["rope_interleave"])
    return RopeConfig(kind=kind, theta=float(theta), interleaved=interleaved, **fields)


def ignored_rope(family: str, values: Mapping[str, Any]) -> list[str]:
    """The rope settings, each with its value, that change nothing with this rope type."""
    kind, given = _settings(family, values)
    read = ("rope_theta", "partial_rotary_factor", *ROPE_KEYS[kind][0], *ROPE_KEYS[kind][1])
    return [f"rope {kind!r}: {key}={value!r}" for key, value in given.items() if key not in read]


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the older spelling."""
    required, optional = ROPE_KEYS[rope.kind]
    settings = {key: getattr(rope, ROPE_NAMES.get(key, key)) for key in (*required, *optional)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    scaling = {"rope_type": rope.kind, **settings} if rope.kind != "default" else None
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _settings(family: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The rope type and its settings without nulls; raises for a type or a setting that we cannot compute."""
    given = _rope_values(family, values)
    older = given.pop("type", None)
    kind = given.pop("rope_type", None) or older or "default"
    if kind not in ROPE_KEYS:
        raise ValueError(unknown("rope_type", kind, ROPE_KEYS))
    check_fixed(family, given, NEUTRAL)
    known = {*EVERY_KEY, *UNREAD, *NEUTRAL}
    for key in given:
        if key not in known:
            raise ValueError(unknown(f"setting of rope_type {kind!r}", key, sum(ROPE_KEYS[kind], ())))
    return kind, {key: value for key, value in given.items() if key not in NEUTRAL}


def _rope_values(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings as one flat dict, whichever spelling holds them."""
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    given = {key: value for key, value in given.items() if value is not None}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    if nested and (any(value != nested[0] for value in nested) or len(nested) != len(given)):
        raise ValueError(f"{family}: rope settings that differ by layer type are not supported, found {given}")
    flat = nested[0] if nested else given
    return {key: value for key, value in flat.items() if value is not None}


def _set_original(given: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Fills in the trained length, and for longrope the factor, as transformers does."""
    key, longest = "original_max_position_embeddings", values["max_position_embeddings"]
    given[key] = values.get(key) or given.get(key) or longest
    if "long_factor" in given:
        given.setdefault("factor", longest / given[key])
        if given["factor"] <= 1:
            given.setdefault("attention_factor", 1.0)
