"""Every setting as a row: for `--help_settings`, for docs/settings.md, and by kind."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from settings.model import Architecture
from settings.run import RunConfig
from settings.setting import Setting, bounds_in_words, declared, default_of, hints_of

KINDS: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "None"}
PAGE = """# Settings

Every setting of a run, as the dataclasses in `settings/` declare it; `python -m settings > docs/settings.md` writes
this page. `python -m train --config=... --help_settings` prints the same with the values of a recipe, and
`--config.<setting>=<value>` changes one. A run may be resumed with another value of a setting marked *; all others are
what the run is.
"""


NOTHING = Setting("")


class Row(typing.NamedTuple):
    """A setting by its dotted name; what is said of a whole group holds for each setting in it."""

    name: str
    hint: Any
    default: Any
    rules: Setting

    @property
    def kind(self) -> str:
        """Its choices or its type, and its bounds, in words."""
        words = ", ".join(name or "''" for name in self.rules.choices) or _type_in_words(self.hint)
        bounds = bounds_in_words(self.rules).removeprefix("be ").removeprefix("lie ")
        return f"{words}, {bounds}" if bounds else words


def rows(owner: type = RunConfig, at: str = "", outer: Setting = NOTHING) -> Iterator[Row]:
    """The settings of a dataclass in the order in which they are declared, then those of the groups in it."""
    hints = hints_of(owner)
    for field in sorted(dataclasses.fields(owner), key=lambda field: dataclasses.is_dataclass(hints[field.name])):
        own, name, hint = declared(field), f"{at}{field.name}", hints[field.name]
        rules = dataclasses.replace(own, executes=own.executes or outer.executes, trained=own.trained or outer.trained)
        if dataclasses.is_dataclass(hint):
            yield from rows(typing.cast(type, hint), f"{name}.", rules)
        else:
            yield Row(name, hint, default_of(field), rules)


def owner_of(keys: Sequence[str]) -> type | None:
    """The dataclass that declares what is in a group of settings; None for a group that declares nothing."""
    owner: type | None = RunConfig
    for key in keys:
        hint = hints_of(owner).get(key) if owner else None
        owner = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
    return owner


def declared_since(stored: Mapping[str, Any]) -> list[Row]:
    """The settings that a stored config does not have."""
    return [row for row in rows() if not _has(stored, row.name.split("."))]


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of the settings that it does not have."""
    whole = copy.deepcopy(dict(stored))
    for row in declared_since(stored):
        *keys, last = row.name.split(".")
        group = whole
        for key in keys:
            group = group.setdefault(key, {})
        group[last] = row.default
    return whole


def _has(stored: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(stored, Mapping):  # no group is in its place, which is told as it is
            return True
        if key not in stored:
            return False
        stored = stored[key]
    return True


def executing() -> tuple[str, ...]:
    """The settings, and groups of them, at the top of a config that say how a run executes and not what it is."""
    return tuple(field.name for field in dataclasses.fields(RunConfig) if declared(field).executes)


def of_trained(kind: str) -> tuple[str, ...]:
    """The model's settings of which a run that starts from a trained one has its "own", or may "change" them."""
    return tuple(row.name for row in rows(Architecture) if row.rules.trained == kind)


def of_whole_runs() -> tuple[str, ...]:
    """The settings that a stage of a pipeline has none of to choose."""
    return tuple(field.name for field in dataclasses.fields(RunConfig) if declared(field).whole_run)


def page() -> str:
    """docs/settings.md: a table for each group."""
    text, group = PAGE, None
    for row in rows():
        here, _, name = row.name.rpartition(".")
        if here != group:
            group, owner = here, owner_of(here.split(".") if here else ())
            text += f"\n## {here or 'The run'}\n\n{(owner.__doc__ or '').split(chr(10))[0]}\n\n"
            text += "| setting | default | values | meaning |\n|---|---|---|---|\n"
        cells = (
            f"`{name}`{'*' if row.rules.executes else ''}",
            f"`{_in_words(row.default)}`",
            row.kind,
            row.rules.meaning,
        )
        text += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return text


def _in_words(value: Any) -> str:
    return "''" if value == "" else str(value)


def _type_in_words(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_type_in_words, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "tuple"
    return KINDS.get(hint, "dict")
