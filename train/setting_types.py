"""A setting's value from the text of a flag: which types there are, how each is written, and what is said otherwise."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any


def as_type(value: Any, hint: Any, name: str) -> Any:
    """A value, or the text of one, as a type; ValueError that names the setting."""
    text, kinds = isinstance(value, str), _kinds(hint)
    if text and str in kinds and not value.startswith(("(", "[")):
        kinds = tuple(kind for kind in kinds if typing.get_origin(kind) is not tuple)
    for kind in sorted(kinds, key=_preference):
        try:
            return READERS[typing.get_origin(kind) or kind](value, kind, text)
        except (ValueError, SyntaxError, TypeError):
            continue
    said = " or ".join(dict.fromkeys(WORDS[typing.get_origin(kind) or kind] for kind in _kinds(hint)))
    raise ValueError(f"{name} is {said}, found {value!r}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _preference(kind: Any) -> int:
    """Text fits everything, so it is tried last."""
    return list(READERS).index(typing.get_origin(kind) or kind)


def _none(value: Any, kind: Any, text: bool) -> None:
    if not (value is None or (text and value.lower() in ("none", "null"))):
        raise ValueError(value)


def _bool(value: Any, kind: Any, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    said = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if not (text and value.lower() in said):
        raise ValueError(value)
    return said[value.lower()]


def _int(value: Any, kind: Any, text: bool) -> int:
    number = float(value) if text and "e" in value.lower() else int(value) if text else value
    if isinstance(number, bool) or number != int(number):
        raise ValueError(value)
    return int(number)


def _float(value: Any, kind: Any, text: bool) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _tuple(value: Any, kind: Any, text: bool) -> tuple[Any, ...]:
    inner = typing.get_args(kind)[:1] or (Any,)
    if text:
        value = _items(value)
    if not isinstance(value, (tuple, list)):
        raise ValueError(value)
    return tuple(as_type(item, inner[0], "an entry") for item in value)


def _items(text: str) -> Any:
    """`(1, 2)`, `[1, 2]`, `1,2` and `sft,grpo` alike; one item alone is a tuple of one."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [item.strip() for item in text.split(",") if item.strip()]
    return found if isinstance(found, (tuple, list)) else (found,)


def _dict(value: Any, kind: Any, text: bool) -> dict[str, Any]:
    found = ast.literal_eval(value) if text else value
    if not isinstance(found, Mapping):
        raise ValueError(value)
    return dict(found)


def _str(value: Any, kind: Any, text: bool) -> str:
    if not text:
        raise ValueError(value)
    return value


def _any(value: Any, kind: Any, text: bool) -> Any:
    """A literal where the text is one, with JSON's names too, else the text."""
    if not text:
        return value
    for read in (_none, _bool) if value.lower() not in ("0", "1", "t", "f") else ():
        try:
            return read(value, kind, text)
        except ValueError:
            continue
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


# In the order in which they are tried.
READERS: dict[Any, Callable[[Any, Any, bool], Any]] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    dict: _dict,
    tuple: _tuple,
    Any: _any,
    str: _str,
}
WORDS: dict[Any, str] = {
    type(None): "None",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a dict",
    tuple: "a tuple such as 1,2",
    Any: "anything",
    str: "text",
}
