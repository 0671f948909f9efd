"""From words to settings: recipes, what is said over them by flags and sweeps, and what a stage changes.

A setting that is said over a recipe holds in every stage, also where the stage has a value of its own; said of one
stage, `stage.<name>.<setting>`, it holds there. Dicts whose keys are not fixed (a task's options, rewards, options of
sbatch) take new keys.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data.tasks import TASKS
from settings.corpus import SourceConfig
from settings.setting import hints_of, unknown
from settings.stages import JOBS
from settings.strategies import STRATEGIES
from settings.table import of_whole_runs, owner_of, rows
from train.setting_types import as_type

Keys = tuple[str, ...]


def _is(algorithm: str, run: ConfigDict) -> bool:
    return bool(run.algorithm == algorithm)


# A stage that has any of these replaces them whole.
SOURCES: Keys = ("corpus", "sources")
STRATEGY_OPTIONS: tuple[Keys, ...] = (("eval", "strategy_options"), ("sample", "strategy_options"))
FREE: tuple[Keys, ...] = (("launch", "options"), ("sample", "least"), ("score", "rewards"))  # of any type
OPTIONS: tuple[Keys, ...] = (("data", "options"), *STRATEGY_OPTIONS, *FREE, SOURCES)
REWARDS: Keys = ("rl", "rewards")
# Groups of settings that are read by some runs alone.
READ_BY: dict[Keys, Callable[[ConfigDict], bool]] = {
    ("rl",): lambda run: run.algorithm == "grpo",
    ("thoughts",): lambda run: run.algorithm == "coconut",
    ("corpus",): lambda run: run.algorithm == "pretrain",
    ("preference",): lambda run: run.algorithm == "preference",
    ("reward",): lambda run: run.algorithm in ("reward", "process_reward"),
    **{(name,): functools.partial(_is, name) for name in JOBS},
    ("distill",): lambda run: run.algorithm == "distill",
    ("model", "mla"): lambda run: "mla" in str(run.model.mixer),
    ("model", "rnn"): lambda run: "min" in str(run.model.mixer),
    ("model", "delta"): lambda run: "delta" in str(run.model.mixer),
    ("model", "moe"): lambda run: "moe" in str(run.model.ffn),
    ("model", "peer"): lambda run: "peer" in str(run.model.ffn),
    ("model", "mtp"): lambda run: bool(run.model.mtp.depth),
    ("model", "recurrent"): lambda run: run.model.depth == "recurrent",
    ("model", "rope"): lambda run: run.model.positions == "rope",
}
PER_RUN = of_whole_runs()  # what a stage has by its nature


def read_recipe(spec: str) -> ConfigDict:
    """The config of `path` or `path:argument`; errors name the file."""
    name, _, argument = spec.partition(":")
    module = load_module(Path(name))
    make = getattr(module, "get_config", None)
    if make is None:
        raise ValueError(f"{name} has no get_config()")
    if argument and not inspect.signature(make).parameters:
        raise ValueError(f"get_config() of {name} takes no argument, found {argument!r}")
    config = make(argument) if argument else make()
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of {name} must return a ConfigDict, found {type(config).__name__}")
    return config.lock()


def load_module(path: Path) -> types.ModuleType:
    """Runs a config file; FileNotFoundError where there is none."""
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no config file at {path}; the recipes are in configs/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def override(config: ConfigDict, settings: Mapping[str, Any]) -> tuple[ConfigDict, list[str]]:
    """A config with other values, by dotted name; and sentences about what of the recipe no longer applies.

    Values have the setting's type or are text that says one. Raises ValueError for names that do not exist and for
    values of another type.
    """
    result, notes = copy.deepcopy(config), []
    with result.unlocked(), result.ignore_type():
        for stage in result.stage:
            result.stage[stage] = written_out(result.stage[stage])
        for name in sorted(settings, key=_order):
            keys = tuple(name.split("."))
            stage = _stage_of(result, keys)
            keys = (*keys[:2], "init_from") if stage and keys[2:] == ("from",) else keys
            notes += _change_task(result, stage, keys, settings[name])
            if stage:
                _put(result, result.stage[stage], keys[2:], settings[name], name)
                continue
            _check_top(result, keys)
            _put(result, result, keys, settings[name], name)
            for own in _stages_with(result, keys):
                _put(result, result.stage[own], keys, settings[name], name)
    return result.lock(), notes


def written_out(changes: ConfigDict) -> ConfigDict:
    """What a stage changes, without shorthands."""
    found = ConfigDict(changes.to_dict())
    with found.unlocked(), found.ignore_type():
        if "from" in found:
            found.init_from = found["from"]
            del found["from"]
        if isinstance(found.get("data"), str):
            found.data = ConfigDict(dict(split=found.data))
    return found


def merge(target: ConfigDict, changes: ConfigDict, at: str, keys: Keys = ()) -> None:
    """Puts what a stage changes into a whole config; ValueError for keys that it does not have."""
    for key, value in changes.items():
        here = (*keys, key)
        if keys != REWARDS and key not in target:
            raise ValueError(unknown(f"setting of {at}", key, target))
        if isinstance(value, ConfigDict) and here not in OPTIONS and keys != REWARDS:
            merge(target[key], value, f"{at}.{key}", here)
        elif keys == REWARDS:
            with target.ignore_type():
                target[key] = value
        else:
            target[key] = value


def settings_read(run: ConfigDict) -> dict[str, Any]:
    """The settings of a single run that it reads, by dotted name, without its name.

    What a model is that starts from another is not known from its config: there all settings of the model count.
    """
    unread = [keys for keys, reads in READ_BY.items() if not reads(run) and not (run.init_from and keys[0] == "model")]
    names = [".".join(keys) + "." for keys in unread]
    return {name: value for name, value in flat(run) if name != "name" and not name.startswith(tuple(names))}


def flat(config: ConfigDict, keys: Keys = ()) -> Iterator[tuple[str, Any]]:
    """Every setting by dotted name, in order."""
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from flat(value, (*keys, key))
        else:
            yield ".".join((*keys, key)), value


def described(config: ConfigDict) -> Iterator[str]:
    """A line for every setting: its value here, its default where that is another, its values, what it means."""
    known = {row.name: row for row in rows()}
    for name, value in flat(config):
        row = known.get(name.split(".", 2)[2] if name.startswith("stage.") else name)
        line = f"{name} = {value!r}"
        if row is None:  # a task's option, a reward, a flag of sbatch
            yield line
            continue
        default = "" if value == row.default else f"default {row.default!r}; "
        yield f"{line}  ({default}{row.kind}) {row.rules.meaning}"


def _order(name: str) -> tuple[bool, bool, int]:
    """Whole runs before single stages, a task before its options, a reward's weight before its options."""
    return name.startswith("stage."), not name.endswith("data.task"), name.count(".")


def _stage_of(config: ConfigDict, keys: Keys) -> str:
    """The stage that a name is about, "" for none."""
    if keys[0] != "stage":
        return ""
    if len(keys) < 3:
        raise ValueError(f"a setting of a stage is named stage.<stage>.<setting>, found {'.'.join(keys)!r}")
    if keys[1] not in config.stage:
        known = ", ".join(config.stage) or "none: it is a single run"
        raise ValueError(f"{unknown('stage', keys[1], config.stage)} The stages of this config: {known}")
    if keys[2] in PER_RUN:
        raise ValueError(f"{'.'.join(keys)}: a stage has no {keys[2]} to choose")
    return keys[1]


def _check_top(config: ConfigDict, keys: Keys) -> None:
    """Raises ValueError for what only each stage by itself can be told."""
    owners = [name for name in config.stages if name in config.stage and "algorithm" in config.stage[name]]
    if keys == ("algorithm",) and owners:
        names = ", ".join(f"stage.{name}.algorithm={config.stage[name].algorithm}" for name in owners)
        raise ValueError(f"each stage of this config has an algorithm of its own: {names}; change it there")


def _stages_with(config: ConfigDict, keys: Keys) -> list[str]:
    """The stages that have a value of their own for a setting (or options of their own, where it is among them)."""
    if keys[0] == "init_from":  # where the first stage starts; the others start from another stage or from "base"
        return [name for name in config.stages[:1] if config.stage.get(name, {}).get("init_from", "base") != "base"]
    own = next((options for options in OPTIONS if keys[: len(options)] == options), keys)
    own = keys[:3] if keys[:2] == REWARDS else own
    return [name for name, stage in config.stage.items() if _has(stage, own)]


def _has(tree: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(tree, ConfigDict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _change_task(config: ConfigDict, stage: str, keys: Keys, value: Any) -> list[str]:
    """Another task takes other options: those of the recipe's task are left out, and that is said."""
    if keys[-2:] != ("data", "task") or len(keys) != (4 if stage else 2):
        return []
    if value not in TASKS:
        raise ValueError(unknown("task", value, TASKS))
    trees = [config.stage[stage]] if stage else [config, *config.stage.values()]
    notes = []
    for tree in trees:
        options = tree.get("data", {}).get("options", {})
        task = tree.get("data", {}).get("task", config.data.task)
        if len(options) and task != value:
            words = ", ".join(f"{key}={given!r}" for key, given in options.items())
            notes.append(f"data.task={value}: options of {task} in the recipe do not apply ({words})")
        if task != value and (tree is config or "options" in tree.get("data", {})):
            tree.data.options = ConfigDict()
    if stage and config.data.task != value and "options" not in config.stage[stage].get("data", {}):
        config.stage[stage].update(ConfigDict(dict(data=dict(options=ConfigDict()))))
    return notes


def _put(config: ConfigDict, tree: ConfigDict, keys: Keys, value: Any, name: str) -> None:
    """Sets one setting in `tree`, the config or what a stage changes in it; groups it lacks are made."""
    if keys[:2] == REWARDS and len(keys) > 2:
        _put_reward(config, tree, keys[2:], value, name)
        return
    options = next((known for known in OPTIONS if keys[: len(known)] == known and len(keys) > len(known)), None)
    if options and not _has(tree, options):
        _group(tree, options[:-1])[options[-1]] = copy.deepcopy(_at(config, options))
    _group(tree, keys[:-1])[keys[-1]] = as_type(value, _hint(config, tree, keys, name), name)


def _put_reward(config: ConfigDict, tree: ConfigDict, keys: Keys, value: Any, name: str) -> None:
    """A reward's weight, its whole entry, or one of the options beside its weight."""
    group = _group(tree, REWARDS)
    entry = copy.deepcopy(group.get(keys[0], config.rl.rewards.get(keys[0])))
    parts = entry if isinstance(entry, ConfigDict) else ConfigDict(dict(weight=1.0 if entry is None else entry))
    if len(keys) > 2:
        raise ValueError(f"a reward's option is named rl.rewards.<reward>.<option>, found {name!r}")
    if len(keys) == 2:
        with parts.unlocked(), parts.ignore_type():
            parts[keys[1]] = as_type(value, Any, name)
        group[keys[0]] = parts
        return
    found = as_type(value, dict | float | None, name)
    if isinstance(entry, ConfigDict) and isinstance(found, float):
        with parts.unlocked(), parts.ignore_type():
            parts.weight = found
        found = parts
    group[keys[0]] = ConfigDict(found) if isinstance(found, Mapping) else found


def _group(tree: ConfigDict, keys: Keys) -> ConfigDict:
    """A group of settings in a tree, made where it is missing."""
    for key in keys:
        if key not in tree:
            with tree.unlocked():
                tree[key] = ConfigDict()
        tree = tree[key]
    return tree


def _at(config: ConfigDict, keys: Keys) -> Any:
    for key in keys:
        config = config[key]
    return config


def _hint(config: ConfigDict, tree: ConfigDict, keys: Keys, name: str) -> Any:
    """The type of a setting; ValueError for one that does not exist, or is a group of settings."""
    if keys[:2] == ("data", "options") and len(keys) == 3:
        return _option_hint(tree.get("data", {}).get("task", config.data.task), keys[2])
    if keys[:2] in FREE and len(keys) >= 3:
        return Any
    if keys[:2] in STRATEGY_OPTIONS and len(keys) == 3:
        return _strategy_hint(tree.get(keys[0], {}).get("strategy", config[keys[0]].strategy), keys)
    if keys[:2] == SOURCES and len(keys) >= 4:
        return _source_hint(tree, keys[2:])
    for n, key in enumerate(keys):
        group = _at(config, keys[:n])
        if not isinstance(group, ConfigDict) or key not in group:
            raise ValueError(_not_known(config, keys, name))
    if isinstance(_at(config, keys), ConfigDict):
        inside = ", ".join(_at(config, keys)) or "nothing yet"
        raise ValueError(f"{name} is a group of settings ({inside}); name one of them: {name}.<setting>=<value>")
    owner = owner_of(keys[:-1])
    assert owner is not None, "only options and rewards are open, and they are read above"
    hint, defaults = hints_of(owner)[keys[-1]], {field.name: field.default for field in dataclasses.fields(owner)}
    return hint | None if defaults[keys[-1]] is None else hint


def _option_hint(task: str, option: str) -> Any:
    """The type of a task's option; an unknown task is somebody else's error."""
    if task not in TASKS:
        return Any
    known = [field.name for field in dataclasses.fields(TASKS[task]) if field.init]  # type: ignore[arg-type]
    if option not in known:
        raise ValueError(unknown(f"option of task {task!r} (data.options)", option, known))
    return typing.get_type_hints(TASKS[task])[option]


def _source_hint(tree: ConfigDict, keys: Keys) -> Any:
    """The type of a setting of a corpus's source, `<name>.<setting>` or `<name>.options.<option>`."""
    known = hints_of(SourceConfig)
    if keys[1] not in known or len(keys) > (3 if keys[1] == "options" else 2):
        raise ValueError(unknown(f"setting of corpus.sources.{keys[0]}", ".".join(keys[1:]), known))
    if len(keys) == 3:
        return _option_hint(tree.corpus.sources[keys[0]].get("task", ""), keys[2])
    return known[keys[1]]


def _strategy_hint(strategy: str, keys: Keys) -> Any:
    """The type of a strategy's option; an unknown strategy is somebody else's error."""
    if strategy not in STRATEGIES:
        return Any
    known, option = hints_of(STRATEGIES[strategy]), keys[2]
    if option not in known:
        raise ValueError(unknown(f"option of strategy {strategy!r} ({'.'.join(keys[:2])})", option, known))
    return known[option]


def _not_known(config: ConfigDict, keys: Keys, name: str) -> str:
    """What to say of a setting that does not exist: the nearest names, wherever they are."""
    known = [path for path, _ in flat(config) if not path.startswith("stage.")]
    wanted = ".".join(keys)
    tails = [path for path in known if path.rpartition(".")[2] == keys[-1]]
    near = tails[:3] or difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    group = config
    for n, key in enumerate(keys):
        if not isinstance(group, ConfigDict) or key not in group:
            inside = f" {'.'.join(keys[:n]) or 'The config'} has: {', '.join(group)}." if len(group) else ""
            return f"unknown setting {name!r}.{hint}{inside}"
        group = group[key]
    return f"unknown setting {name!r}.{hint}"
