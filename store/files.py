"""Reading the text and JSON files that users give: with or without a byte-order mark, loud and named when broken."""

import json
from pathlib import Path
from typing import Any

MOST_DIGITS = 4_000
MARK = "\ufeff"  # the byte-order mark that some editors put in front of UTF-8


def read_text(file: str | Path) -> str:
    """Returns a UTF-8 file's text without a byte-order mark; ValueError, with the line, for other encodings."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found = error.object[error.start : error.start + 1].hex()
        raise ValueError(f"{file}, line {line}: byte 0x{found} is not UTF-8; save the file in that encoding") from None


def read_json(file: str | Path) -> Any:
    """Returns the value of a JSON file; ValueError that names the file when it is none."""
    return _parsed(read_text(file), str(file), f"{file} is not JSON")


def read_json_object(file: str | Path) -> dict[str, Any]:
    """Returns the object in a JSON file; ValueError that names the file when it holds something else."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a JSON object")
    return content


def parse_json(text: str, where: str) -> Any:
    """Returns the value of a JSON text; ValueError that says `where` when it is none, or holds half a character.

    JSON can spell half of a surrogate pair, which no tokenizer can encode and no file can hold.
    """
    return _parsed(text, where, f"{where}: not JSON")


def load_json(text: str) -> Any:
    """Returns the value of a JSON text, with or without a byte-order mark; ValueError for whatever is none.

    Whole numbers that Python does not convert stay their digits.
    """
    try:
        return json.loads(text.removeprefix(MARK), parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, column {error.colno} of line {error.lineno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def _parsed(text: str, where: str, broken: str) -> Any:
    try:
        value = load_json(text)
    except ValueError as error:
        raise ValueError(f"{broken} ({error})") from None
    if "\\ud" in text or "\\uD" in text:
        _refuse_halves(value, where)
    return value


def _integer(digits: str) -> int | str:
    """A number, or its digits where Python converts no more of them."""
    return int(digits) if len(digits) <= MOST_DIGITS else digits


def _refuse_halves(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        near = error.object[max(error.start - 30, 0) : error.start].encode(errors="replace").decode()
        raise ValueError(
            f"{where}: \\u{ord(half):04x} after {near!r} is half of a surrogate pair and no character; write the whole"
            " pair, or U+FFFD in its place"
        ) from None
