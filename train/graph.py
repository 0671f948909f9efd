"""Stages as a graph: what each starts from and reads, an order in which all can run, and which of them are stale.

A stage is a run directory. A setting that is a folder or file (`reference` in settings/setting.py) may name another
stage of the pipeline, `<stage>`, or one of its files, `<stage>/<file>`; that is an edge of the graph.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from settings.setting import unknown
from settings.stages import LEAVE_NO_MODEL
from settings.table import rows
from store.run_directory import fixed_settings
from train.settings import PER_RUN, merge, written_out

BASE = "base"  # what the pipeline starts from: its own `init_from`, or a model drawn anew
# Groups of settings without fixed names, in whose entries a key is a reference.
OPEN = dict.fromkeys((("rl", "rewards"), ("score", "rewards"), ("sample", "least"), ("corpus", "sources")), "path")


@dataclass(frozen=True)
class Stage:
    """A stage with its whole config, references resolved to paths; `edges`: by setting, the stage or file of a stage
    that it names; `inputs`: files outside of the pipeline that it reads.
    """

    name: str
    config: ConfigDict
    folder: Path
    edges: Mapping[str, str]
    inputs: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must have ended before this one begins."""
        return tuple(dict.fromkeys(reference.partition("/")[0] for reference in self.edges.values()))

    @property
    def needs_files(self) -> tuple[str, ...]:
        """Those of which it reads a file, not the model."""
        return tuple(dict.fromkeys(ref.partition("/")[0] for ref in self.edges.values() if "/" in ref))


def graph_of(config: ConfigDict, workdir: Path = Path()) -> list[Stage]:
    """The stages of a pipeline in an order in which each comes after those that it needs.

    Where nothing is said, a stage starts from the one listed before it that leaves a model. Raises ValueError for
    unknown stages and settings, and for stages that need each other.
    """
    if BASE in config.stages:
        raise ValueError(
            f"a stage cannot be called {BASE!r}, which is what the pipeline starts from: name it otherwise"
        )
    stages = [_stage(config, name, workdir) for name in config.stages]
    ordered: list[Stage] = []
    left = {stage.name: stage for stage in stages}
    while left:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in left.values() if done.issuperset(stage.needs)), None)
        if ready is None:
            raise ValueError(f"stages that need each other can never begin: {' -> '.join(_cycle(left))}")
        ordered.append(left.pop(ready.name))
    return ordered


def stage_config(config: ConfigDict, name: str) -> ConfigDict:
    """The whole config of one stage: the pipeline's, changed by `config.stage.<name>`; unknown keys raise.

    In a stage `from` is short for `init_from`, and text under `data` for `data.split`.
    """
    if name not in config.stage:
        raise ValueError(unknown("stage", name, config.stage))
    changes = written_out(config.stage[name])
    for key in PER_RUN:
        if key in changes:
            raise ValueError(f"stage.{name}.{key}: a stage has no {key} to choose")
    stage = copy.deepcopy(config).unlock()  # with the types of its settings
    stage.stages, stage.stage = (), ConfigDict()
    stage.name = f"{config.name}/{name}"
    merge(stage, changes, f"stage.{name}")
    if "init_from" not in changes:
        stage.init_from = before(config, name)
    return stage


def before(config: ConfigDict, name: str) -> str:
    """What a stage starts from that says nothing: the last stage listed before it that leaves a model, or the base."""
    earlier = config.stages[: list(config.stages).index(name)] if name in config.stages else ()
    leaves = [other for other in earlier if _algorithm(config, other) not in LEAVE_NO_MODEL]
    return leaves[-1] if leaves else BASE


def _algorithm(config: ConfigDict, name: str) -> str:
    return str(config.stage.get(name, {}).get("algorithm", config.algorithm))


def _stage(config: ConfigDict, name: str, workdir: Path) -> Stage:
    found, edges, inputs = stage_config(config, name), dict[str, str](), list[str]()
    for setting, group, key, value in references(found):
        texts = value if isinstance(value, list | tuple) else (value,)
        resolved = []
        for place, text in enumerate(texts):
            at = setting if len(texts) == 1 else f"{setting}[{place}]"
            if text == BASE and setting == "init_from":
                resolved.append(config.init_from)
            elif text.partition("/")[0] in config.stages:
                edges[at] = text
                resolved.append(str(workdir / text))
            else:
                _check_named(name, at, text, config.stages)
                inputs += [text] if text.endswith(".jsonl") else []
                resolved.append(text)
        with found.ignore_type():
            group[key] = tuple(resolved) if isinstance(value, list | tuple) else resolved[0]
    return Stage(name, found.lock(), workdir / name, edges, tuple(inputs))


def references(config: ConfigDict) -> Iterator[tuple[str, ConfigDict, str, Any]]:
    """Every setting of a run that names a folder or file: its name, its group, its key there, its value."""
    for row in rows():
        if row.rules.reference:
            *keys, last = row.name.split(".")
            group = config
            for key in keys:
                group = group[key]
            if group[last]:
                yield row.name, group, last, group[last]
    for (outer, inner), key in OPEN.items():
        for name, entry in config[outer][inner].items():
            if isinstance(entry, ConfigDict) and entry.get(key):
                yield f"{outer}.{inner}.{name}.{key}", entry, key, entry[key]


def _check_named(stage: str, setting: str, text: str, stages: Sequence[str]) -> None:
    """Raises FileNotFoundError for what is neither there nor a stage but nearly called as one is."""
    first, path = text.partition("/")[0], Path(text)
    named = "/" in text or setting in ("init_from",)
    near = difflib.get_close_matches(first, [name for name in stages if name != stage], n=1, cutoff=0.75)
    if named and near and not text.startswith(("/", ".", "gs://")) and not path.exists():
        raise FileNotFoundError(
            f"stage.{stage}.{setting}={text!r}: there is no such file or folder and no stage {first!r}. Did you mean"
            f" {near[0] + text[len(first) :]!r}?"
        )


def _cycle(left: Mapping[str, Stage]) -> list[str]:
    """The names of stages that need each other, the first again at the end."""
    path = [next(iter(left))]
    while True:
        following = next(name for name in left[path[-1]].needs if name in left)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def digests(stages: Sequence[Stage]) -> dict[str, dict[str, str]]:
    """For each stage what its inputs are, by name: the digests of the stages that it needs, of files outside.

    A stage's digest is that of its settings and of its inputs, so that a change is seen by all that comes after it.
    """
    found: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for stage in stages:
        inputs = {name: whole[name] for name in stage.needs}
        inputs |= {path: _file_digest(Path(path)) for path in stage.inputs if Path(path).is_file()}
        found[stage.name] = inputs
        settings = fixed_settings(stage.folder, stage.config)
        for setting in ("name", *stage.edges):  # where the pipeline lies is no part of it
            _forget(settings, setting)
        told = json.dumps([settings, dict(stage.edges), inputs], sort_keys=True, default=str)
        whole[stage.name] = hashlib.sha256(told.encode()).hexdigest()
    return found


def _forget(settings: dict[str, Any], name: str) -> None:
    *keys, last = name.partition("[")[0].split(".")
    for key in keys:
        settings = settings.get(key) or {}
    settings.pop(last, None)


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drawn(stages: Sequence[Stage], states: Mapping[str, str]) -> list[str]:
    """A line for each stage: its state, what it is, what it starts from and reads."""
    lines, width = [], max(len(stage.name) for stage in stages)
    for stage in stages:
        said = [f"{setting}={reference}" for setting, reference in stage.edges.items() if setting != "init_from"]
        start = stage.edges.get("init_from") or stage.config.init_from or "new weights"
        what = f"{stage.config.algorithm:15} from {start}"
        lines.append(f"{states[stage.name]:9} {stage.name:{width}}  {', '.join([what, *said])}")
    return lines
