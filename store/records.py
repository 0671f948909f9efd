"""JSON files and JSON lines that a run leaves: written atomically, read back as they were meant."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from store.disk import writing
from store.json_files import Fields, read_json_lines, without_surrogates
from store.objects import append, flush, is_object, place, write

Record = dict[str, Any]
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
# JSON has no such numbers; as words they survive the way there and back.
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain(value: Any) -> Any:
    """A JSON-able copy: arrays become numbers or lists, NaN and infinities the words nan, inf and -inf, and surrogates
    in texts U+FFFD, so that UTF-8 holds them.
    """
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    return without_surrogates(str(value))


def write_json(path: str | Path, obj: Any) -> None:
    """Write one JSON file so that a reader sees the old text or the new one, never a part."""
    replace_text(place(path), json.dumps(plain(obj), indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a temporary file beside `path`, force it to the disk and rename it; the first process alone does so.

    An object is uploaded whole, after the lines that were appended beside it.
    """
    if jax.process_index():
        return
    if is_object(path):
        flush(path.parent)
        write(path, without_surrogates(text).encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # what a killed process left is written over
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(without_surrogates(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that lines never mix and only the last can be torn.

    Only a full disk takes less than the line: the rest is tried again, and that raises DiskFull. Of several processes
    the first alone writes: the others would only repeat it. To an
    object lines are uploaded together (store/objects.py).
    """
    if jax.process_index():
        return
    line = (json.dumps(plain(record), ensure_ascii=False) + "\n").encode()
    if is_object(path):
        append(path, line)
        return
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        finally:
            os.close(descriptor)


def read_lines(path: Path, fields: Fields | None = None) -> list[Record]:
    """Every record of a JSON-lines file, [] if there is none; a torn last line is left out.

    Raises ValueError, with the line's number, for a broken line that is not the last, and for one without its step or
    one of the `fields`.
    """
    if is_object(path):
        flush(path)
    return read_json_lines(path, {"step": int, **(fields or {})}) if path.is_file() else []


def truncate(path: Path, done: int) -> None:
    """Drop what a run resumed after `done` updates will write again: later records, and a torn last line.

    A run that starts over (done = 0) drops everything.
    """
    if path.is_file():
        kept = [record for record in read_lines(path) if 0 < done >= record["step"]]
        replace_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def keep_lines(path: Path, count: int) -> None:
    """Drop what stands in a file after its first `count` lines; nothing where there is no file."""
    if path.is_file():
        if is_object(path):
            flush(path)
        lines = path.read_bytes().split(b"\n")  # a text may hold what `splitlines` takes for the end of a line
        if len(lines) > count + 1 or lines[-1]:
            replace_text(path, b"".join(line + b"\n" for line in lines[:count]).decode())


def read_metrics(workdir: str | Path) -> list[Record]:
    """The records of a run's metrics.jsonl (or of that file) in order; nan and infinities are floats again.

    [] of a run that has written none yet. Raises FileNotFoundError for what is no run, and names the stages it holds.
    """
    path = place(workdir)
    file = path / METRICS if path.is_dir() else path
    inside = sorted(str(found.parent) for found in path.glob(f"*/{METRICS}"))
    if not file.is_file() and (inside or not (path / "config.json").is_file()):
        near = f" It has stages, with metrics of their own: {', '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"there is no {file}; give the directory of a run.{near}")
    return [{key: number(value) for key, value in record.items()} for record in read_lines(file)]


def number(value: Any) -> Any:
    """The float that one of the words nan, inf and -inf stands for; anything else as it is."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def is_scalar(value: Any) -> bool:
    """Whether a value can be a point of a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool)
