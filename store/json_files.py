"""Text and JSON from outside, read so that whatever comes out can be written again.

Python's texts may hold halves of UTF-16 pairs (lone surrogates), which no UTF-8 file can hold: `"\\ud800"` in a JSON
file is enough. They become U+FFFD where text enters.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.files import load_json

SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
SHOWN = 80  # characters of a wrong value in a message

Fields = Mapping[str, type]  # what an object must have under which names


def without_surrogates(text: str) -> str:
    """The text with U+FFFD in the place of every surrogate, so that UTF-8 can hold it."""
    return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def forgive_output() -> None:
    """Lets standard output write what its encoding does not have as escapes, as standard error always does."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no encoding
        sys.stdout.reconfigure(errors="backslashreplace")


def cleaned(value: Any) -> Any:
    """A JSON value whose texts and names hold no surrogates."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        return {without_surrogates(name): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text, without surrogates; ValueError for whatever is no JSON in UTF-8."""
    text = content.decode() if isinstance(content, bytes) else content
    value = load_json(text)
    return cleaned(value) if ESCAPED_SURROGATE.search(text) else value


def read_json(path: Path, fields: Fields | None = None, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file, which has `fields`, or at least one.

    Raises ValueError that names the file and says what is in it, and the `advice`, for anything else; OSError for a
    file that cannot be opened.
    """
    hint = f"; {advice}" if advice else ""
    content = path.read_bytes()
    try:
        found = parse_json(content)
    except ValueError as error:
        what = f"it is no JSON ({error})" if content.strip() else "it is empty"
        raise ValueError(f"{path} cannot be read: {what}{hint}") from error
    if wrong := fault(found, fields):
        raise ValueError(f"{path} cannot be used: {wrong}{hint}")
    return dict(found)


def read_json_lines(path: Path, fields: Fields | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each with `fields`; a torn last line, as a killed process leaves, is left out.

    Raises ValueError with the file and the line's number for any other line.
    """
    # Not `splitlines`: texts may hold characters that it takes for the end of a line.
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if wrong := fault(record, fields):
            raise ValueError(f"{path}, line {number} cannot be used: {wrong}")
        records.append(record)
    return records


def fault(found: Any, fields: Fields | None = None) -> str:
    """What keeps a value from being an object with these fields (None: with any), in words; "" for nothing."""
    expected = f" with {', '.join(fields)}" if fields else ""
    if not isinstance(found, dict):
        return f"it holds {described(found)}, expected an object{expected}"
    if fields is None and not found:
        return "it holds an empty object"
    if missing := [name for name in fields or () if name not in found]:
        return f"it has no {', '.join(missing)}; it has {', '.join(found) or 'nothing'}"
    for name, kind in (fields or {}).items():
        if not isinstance(found[name], kind):
            return f"{name} is {described(found[name])}, expected {NAMES.get(kind, kind.__name__)}"
    return ""


def described(value: Any) -> str:
    """Kind and beginning of a JSON value: `a list ([1, 2])`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = json.dumps(value)
    return f"{NAMES[type(value)]} ({text if len(text) <= SHOWN else f'{text[:SHOWN]}...'})"
