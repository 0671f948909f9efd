"""How a setting is declared: a dataclass field with its default, its meaning, its choices and bounds, in one place.

    samples: int = setting(8, "completions per prompt", low=1)

Everything else is read from there: the ConfigDicts of recipes, `--help_settings`, docs/settings.md, validation, the
keyword defaults of functions, and what of a run's config may change when it is resumed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
REQUIRED = dataclasses.MISSING  # the default of a field that has none


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name, its type and its default.

    `choices`: the names it may have (of a tuple: each entry); `low`, `high`, `above`: its bounds, the last excluded;
    None is within any. `why`: what an error adds to a bound. `executes`: it says how a run executes and not what it is,
    so that a run may be resumed with another value. `reference`: a folder or file, in a pipeline also a stage or one of
    its files, `<stage>/<file>`. `whole_run`: a stage of a pipeline has none to choose. `unset`: what a config holds
    where nothing is asked, unless that is the default. `trained`: what becomes of it where a model starts from a
    trained one: it must agree (""), it may "change", or it is always this run's "own".
    """

    meaning: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    why: str = ""
    executes: bool = False
    reference: bool = False
    whole_run: bool = False
    unset: Any = None
    trained: str = ""


def setting(default: Any, meaning: str, **rules: Any) -> Any:
    """A dataclass field that is a setting; `rules` are the fields of `Setting`, a mutable default is copied."""
    metadata = {"setting": Setting(meaning, **rules)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(field: dataclasses.Field[Any]) -> Setting:
    """What a field was declared with; TypeError where it was not by `setting`."""
    if "setting" not in field.metadata:
        raise TypeError(f"{field.name} is no setting: declare it with settings.setting.setting")
    return field.metadata["setting"]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a config holds where nothing is asked."""
    unset = declared(field).unset
    if unset is not None:
        return unset
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def hints_of(owner: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(owner)


def faults(config: Any, at: str = "") -> Iterator[str]:
    """A sentence for every setting of a dataclass whose value is none of its choices or out of its bounds.

    `at`: what stands before the names, such as "moe.".
    """
    for field in dataclasses.fields(config):
        if "setting" not in field.metadata:  # what a subclass knows besides
            continue
        rules, value = declared(field), getattr(config, field.name)
        entries = value if isinstance(value, tuple) else (value,)
        for entry in entries if rules.choices else ():
            if entry is not None and entry not in rules.choices:
                yield unknown(f"{at}{field.name}", entry, rules.choices)
        if value is not None and not _within(value, rules):
            yield f"{at}{field.name} must {bounds_in_words(rules)}, found {value!r}{rules.why and f': {rules.why}'}"


def check(config: Any, at: str = "", more: Iterable[str] = ()) -> None:
    """Raises one ValueError that lists the faults of a dataclass's settings, or, where it has none, `more`."""
    found = list(faults(config, at)) or list(more)
    if found:
        raise ValueError("\n".join(found))


def bounds_in_words(rules: Setting) -> str:
    """Such as "lie in (0, 1]" or "be at least 1"; "" without bounds."""
    if rules.high is not None:
        start = f"({rules.above:g}" if rules.above is not None else f"[{rules.low:g}"
        return f"lie in {start}, {rules.high:g}]"
    if rules.above is not None:
        return "be positive" if rules.above == 0 else f"be more than {rules.above:g}"
    return "" if rules.low is None else f"be at least {rules.low:g}"


def _within(value: Any, rules: Setting) -> bool:
    if rules.low is None and rules.above is None:
        return True
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    number, most = float(value), math.inf if rules.high is None else rules.high
    if rules.above is not None:
        return rules.above < number <= most
    return rules.low is not None and rules.low <= number <= most


def unknown(what: str, found: object, choices: Iterable[str]) -> str:
    """Message for a name that is not among `choices`, with the nearest one."""
    choices = list(choices)
    near = difflib.get_close_matches(str(found), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {found!r}.{hint} Choices: {', '.join(choices)}."


def from_mapping(owner: type[T], values: Mapping[str, Any], **changes: Any) -> T:
    """The dataclass of a group of settings, which may hold others, too; lists become tuples, groups dataclasses."""
    hints, found = hints_of(owner), {}
    for field in dataclasses.fields(owner):  # type: ignore[arg-type]
        if field.name in values and field.name not in changes:
            value, hint = values[field.name], hints[field.name]
            group = isinstance(hint, type) and dataclasses.is_dataclass(hint)
            found[field.name] = from_mapping(hint, value) if group else _plain(value)
    return owner(**found | changes)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list) else value
