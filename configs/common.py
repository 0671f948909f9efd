"""What recipes share: a config of every setting with its default, and the parser of `get_config`'s argument."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from settings.run import RunConfig
from settings.setting import default_of, hints_of


def base() -> ConfigDict:
    """Every setting there is, with its default; recipes change values and may not add keys.

    The dataclasses of `settings` say what each means: docs/settings.md, or `python -m train --help_settings`.
    """
    return group(RunConfig)


def group(owner: type) -> ConfigDict:
    """The settings that a dataclass declares, with their defaults."""
    hints = hints_of(owner)
    return ConfigDict({field.name: _value(hints[field.name], field) for field in dataclasses.fields(owner)})


def _value(hint: Any, field: dataclasses.Field[Any]) -> Any:
    """A setting's default as a config holds it: a group where it is one, a placeholder of its type where it is None."""
    if dataclasses.is_dataclass(hint):
        return group(hint)  # type: ignore[arg-type]
    default = default_of(field)
    if default is None:
        kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
        return placeholder(kinds[0]) if len(kinds) == 1 and kinds[0] in (int, float) else None
    if isinstance(default, dict):
        return ConfigDict({name: placeholder(float) if value is None else value for name, value in default.items()})
    several = len([kind for kind in typing.get_args(hint) if kind is not type(None)]) > 1
    return FieldReference(default, field_type=object) if several and not isinstance(default, tuple) else default


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Reads `get_config`'s argument, "key=value,flag": values take the type of their default; unknown keys raise.

    A key without a value is True. `--config=configs/x.py:small,steps=10` passes "small,steps=10".
    """
    values = ConfigDict(dict(defaults))
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown config argument {key!r}; this recipe takes {', '.join(defaults) or 'none'}")
        values[key] = _as_type_of(key, defaults[key], text or "true")
    return values


def _as_type_of(key: str, default: Any, text: str) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false", "True", "False"):
            raise ValueError(f"{key} is true or false, found {text!r}")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError as error:
        raise ValueError(f"{key} is of type {type(default).__name__}, found {text!r}") from error
