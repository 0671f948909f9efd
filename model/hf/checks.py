"""What must hold of a config.json before its keys are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def fp8_block(config: Mapping[str, Any]) -> int | None:
    """The side of the square blocks that share a scale where the weights are stored as FP8, None where they are not.

    Raises ValueError for any other quantisation: DeepSeek-V3's (2412.19437 section 3.3.2) is the one we read.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, Mapping):
        raise ValueError(f"quantization_config={quantization!r}, expected an object")
    block = quantization.get("weight_block_size")
    square = isinstance(block, list) and len(block) == 2 and block[0] == block[1] and SIZE.holds(block[0])
    if quantization.get("quant_method") != "fp8" or quantization.get("fmt", "e4m3") != "e4m3" or not square:
        raise ValueError(
            f"quantization_config={quantization} is not supported, only quant_method 'fp8' of fmt 'e4m3' with a square "
            "weight_block_size; convert the weights first"
        )
    return int(quantization["weight_block_size"][0])
