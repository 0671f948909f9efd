"""The ids that end, begin and fill texts, as a model's settings name them: generation_config.json, then config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.files import read_json_object

# Earlier files win.
GENERATION_FILES = ("generation_config.json", "config.json")
MOST_IDS = 2**31 - 1


def read_generation(folder: Path) -> dict[str, Any]:
    """Returns the merged GENERATION_FILES of a folder; null counts as absent. ValueError names a broken file."""
    merged: dict[str, Any] = {}
    for settings in reversed(_found(folder).values()):
        merged.update({key: value for key, value in settings.items() if value is not None})
    return merged


def check_end_ids(folder: Path, vocab_size: int) -> None:
    """Raises ValueError that names the file where `eos_token_id` is none of the tokenizer's ids or the model's.

    Where no config.json tells the model's, as in what a tokenizer saved, any id may be meant.
    """
    found = _found(folder)
    model = found.get("config.json", {"vocab_size": MOST_IDS}).get("vocab_size")
    limit = max(vocab_size, model) if isinstance(model, int) else vocab_size
    for name, settings in found.items():
        value = settings.get("eos_token_id")
        if any(type(index) is not int or not 0 <= index < limit for index in as_list(value)):
            raise ValueError(f"{folder / name}: eos_token_id={value!r}, expected ids from 0 to {limit - 1}, or null")


def written(own: bytes | None, generation: Mapping[str, Any]) -> bytes:
    """Returns the generation_config.json that says by itself which ids were merged on reading.

    `own` is the file that was read, if there was one; it stays as it is where it says all of them.
    """
    ids = {name: value for name, value in generation.items() if name.endswith("_token_id")}
    settings = {} if own is None else json.loads(own.decode("utf-8-sig"))
    if own is not None and all(settings.get(name) == value for name, value in ids.items()):
        return own
    return json.dumps(settings | ids, indent=2).encode()


def as_list(value: Any) -> list[Any]:
    """Returns the ids of a setting that holds one, several or null."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _found(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: read_json_object(folder / name) for name in GENERATION_FILES if (folder / name).is_file()}
