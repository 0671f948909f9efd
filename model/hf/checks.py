"""What must hold of a config.json before its keys are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from model.hf.values import SIZE
from settings.setting import unknown


def check_fixed(family: str, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ValueError where a key is given a value other than the only one we can compute."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{family}: {key}={config[key]!r} is not supported, only {value!r}")


def check_closed(family: str, config: Mapping[str, Any], word: str, known: Iterable[str]) -> None:
    """Raises ValueError for a key that holds `word` and is not known, naming those that are; "" closes nothing."""
    theirs = sorted(key for key in known if word and word in key)
    for key in config:
        if word and word in key and key not in theirs:
            raise ValueError(unknown(f"{family} key", key, theirs))


def need(family: str, values: Mapping[str, Any], *keys: str) -> None:
    """Raises ValueError that lists the keys without a value."""
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise ValueError(f"{family}: config.json lacks {', '.join(missing)}")


def respell(family: str, config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The config under one spelling of each key; raises ValueError where two spellings contradict each other."""
    values = {key: value for key, value in config.items() if key not in aliases}
    for theirs, ours in aliases.items():
        if theirs not in config:
            continue
        if values.get(ours) is None:
            values[ours] = config[theirs]
        if values[ours] != config[theirs]:
            raise ValueError(f"{family}: {theirs}={config[theirs]!r} contradicts {ours}={values[ours]!r}")
    return values


class Quantisation(NamedTuple):
    """How weights are stored as codes: "fp8" with a scale for each square block of side `block`, or "mxfp4"."""

    method: str
    block: int = 0


def quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """How a config.json says that weights are stored, None for as they are.

    Raises ValueError for any other quantisation: DeepSeek-V3's FP8 (2412.19437 section 3.3.2) and gpt-oss's MXFP4
    (2508.10925) are those we read.
    """
    given = config.get("quantization_config")
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(f"quantization_config={given!r}, expected an object")
    if given.get("quant_method") == "mxfp4":
        return Quantisation("mxfp4")
    block = given.get("weight_block_size")
    square = isinstance(block, list) and len(block) == 2 and block[0] == block[1] and SIZE.holds(block[0])
    if given.get("quant_method") != "fp8" or given.get("fmt", "e4m3") != "e4m3" or not square:
        raise ValueError(
            f"quantization_config={given} is not supported, only quant_method 'fp8' of fmt 'e4m3' with a square "
            "weight_block_size, and 'mxfp4'; convert the weights first"
        )
    return Quantisation("fp8", int(given["weight_block_size"][0]))
