"""Errors for names that were mistyped: what was found, what is known, what is near."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Returns the error for a name that is not among the known ones, with the nearest as a suggestion."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}; known: {', '.join(choices)}.{hint}")


def check_options(kind: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ValueError at the first option that is not known."""
    choices = set(known)
    for name in options:
        if name not in choices:
            raise unknown_name(f"option of {kind}", name, choices)
