"""Stages: run directories that hand their models and files on, in the order of their graph (train/graph.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.tokenizers.base import Tokenizer
from infer.load import Origin
from model.sharding import parse_rules, using
from settings.setting import unknown
from settings.stages import JOBS, LEAVE_NO_MODEL
from store.json_files import read_json
from store.objects import move
from store.records import plain, replace_text, write_json
from store.run_directory import INPUTS, check_free, claim, is_complete, provenance, read_result, release, set_aside
from train.compute import SIZES
from train.curves import plot_curves
from train.graph import Stage, digests, drawn, graph_of
from train.picture import plot_graph
from train.setup import Algorithm, Setup, prepare

Run = Callable[[ConfigDict, Path], dict[str, Any]]
Build = Callable[[Setup], Algorithm]
STALE = "stale"  # in --redo: whatever was changed, and what depends on it
COMPLETE, BEGUN, NEW, CHANGED = "complete", "begun", "new", "changed"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which stages run: `only` these, all `until` one; `redo`: those whose folders are moved aside and run anew, with
    what depends on them.
    """

    only: tuple[str, ...] = ()
    until: str = ""
    redo: tuple[str, ...] = ()


EVERY = Choice()


@dataclasses.dataclass(frozen=True)
class Builders:
    """How the loop runs one stage, makes of its setup what would be trained, and of one whose files are yet to come
    what can be looked at without them.
    """

    run: Run
    build: Build
    update: Callable[[Setup], object]


def runs_of(config: ConfigDict, workdir: Path = Path()) -> list[ConfigDict]:
    """The runs that a config stands for: itself, or its stages, each after those that it needs."""
    return [stage.config for stage in graph_of(config, workdir)] if config.stages else [config]


def trained_steps(config: ConfigDict, workdir: Path = Path()) -> list[int]:
    """The steps of each run that a config stands for, of those that train."""
    return [run.steps for run in runs_of(config, workdir) if run.algorithm not in JOBS]


def run_stages(config: ConfigDict, workdir: Path, builders: Builders, choice: Choice = EVERY) -> dict[str, Any]:
    """Runs the chosen stages, each in its own folder once those that it needs have ended.

    Finished stages are not run again. All stages that are new are built before the first one runs; a pipeline of which
    one cannot be built, or whose first stage is refused at its start, leaves nothing behind. Raises ValueError for
    stages that were changed, or depend on one that was, unless they are to be redone.
    """
    started = time.perf_counter()
    stages = graph_of(config, workdir)
    chosen = chosen_stages(stages, choice)
    if choice.redo:
        redo(stages, choice.redo)
    check_states(stages)
    check_needs(chosen, stages)
    new = not (workdir / "config.json").is_file()
    looked_at = chosen if choice.only else stages
    if not all((stage.folder / "config.json").is_file() for stage in looked_at):
        check_stages(looked_at, builders, ended={stage.name for stage in stages if complete(stage)})
    claim(workdir, config)
    set_aside(workdir)
    for stage in chosen:
        try:
            record_inputs(stage, stages)
            result = builders.run(stage.config, stage.folder)
        except Exception:
            if new and not any((stage.folder / "config.json").is_file() for stage in stages):
                release(workdir)
            raise
        if result["status"] != "complete":
            return {**result, "workdir": str(workdir)}
    left = [stage.name for stage in stages if not complete(stage)]
    if left:
        return {"status": "partial", "name": config.name, "left": left, "workdir": str(workdir)}
    return finish(config, workdir, stages, time.perf_counter() - started)


def finish(config: ConfigDict, workdir: Path, stages: Sequence[Stage], seconds: float) -> dict[str, Any]:
    """The pipeline's result of stages that are all complete, with one samples.jsonl and the pictures beside it."""
    results = [read_result(stage.folder) for stage in stages]
    rows = [{**result["stages"][0], "name": stage.name} for stage, result in zip(stages, results, strict=True)]
    measured = [result["evaluation"] for result in results if result["evaluation"]]
    sized = [{name: result[name] for name in SIZES} for result in results if set(SIZES) <= set(result)]
    result = {
        "status": "complete",
        "name": config.name,
        "stages": rows,
        **(sized[-1] if sized else {}),
        "evaluation": measured[-1] if measured else {},
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "compilations": sum(result.get("compilations", 0) for result in results),
        "wall_seconds": round(seconds, 2),
        **provenance(config),
    }
    folders = [stage.folder for stage in stages]
    gather_samples(folders, workdir)
    plot_curves([folder for folder in folders if (folder / "metrics.jsonl").is_file()], workdir / "curves.png")
    if any(len(stage.edges) > 1 for stage in stages):
        plot_graph(stages, {row["name"]: row for row in rows}, workdir / "graph.png")
    write_json(workdir / "result.json", result)
    return result


def gather_samples(folders: Sequence[Path], workdir: Path) -> None:
    """One samples.jsonl of those in several folders."""
    # Whole files: what models write may hold what `splitlines` takes for the end of a line.
    texts = [path.read_bytes().decode() for folder in folders if (path := folder / "samples.jsonl").is_file()]
    replace_text(workdir / "samples.jsonl", "".join(texts))


def record_inputs(stage: Stage, stages: Sequence[Stage]) -> None:
    """Writes beside a new stage what it will be made of."""
    inputs = digests(stages)[stage.name]
    if inputs and not (stage.folder / "config.json").is_file() and jax.process_index() == 0:
        write_json(stage.folder / INPUTS, inputs)


def check_needs(chosen: Sequence[Stage], stages: Sequence[Stage]) -> None:
    """Raises ValueError where a chosen stage needs one that has not ended and is not chosen."""
    ready = {stage.name for stage in chosen} | {stage.name for stage in stages if complete(stage)}
    for stage in chosen:
        if missing := [name for name in stage.needs if name not in ready]:
            raise ValueError(
                f"stage {stage.name!r} needs {', '.join(missing)}, which has not ended: run it first, or together with"
                f" this one (--only={','.join([*missing, stage.name])})"
            )


def chosen_stages(stages: Sequence[Stage], choice: Choice) -> list[Stage]:
    """The stages to run, in order; ValueError for names that there are not."""
    names = [stage.name for stage in stages]
    for name in (*choice.only, *filter(None, (choice.until,)), *(n for n in choice.redo if n != STALE)):
        if name not in names:
            raise ValueError(unknown("stage", name, names))
    if choice.until:
        needed, reached = {choice.until}, list[Stage]()
        for stage in reversed(stages):
            if stage.name in needed:
                needed |= set(stage.needs)
                reached.insert(0, stage)
        return reached
    return [stage for stage in stages if not choice.only or stage.name in choice.only]


def complete(stage: Stage) -> bool:
    """Whether a stage has its result, of all its steps."""
    return is_complete(stage.folder, [] if stage.config.algorithm in JOBS else [stage.config.steps])


def states(stages: Sequence[Stage]) -> dict[str, tuple[str, str]]:
    """Where each stage is, with a reason where it is CHANGED (its own settings) or STALE (what it was made of)."""
    found: dict[str, tuple[str, str]] = {}
    current = digests(stages)
    for stage in stages:
        if not (stage.folder / "config.json").is_file():
            check_free(stage.folder, stage.config)
            found[stage.name] = NEW, ""
            continue
        path = stage.folder / INPUTS
        recorded = read_json(path) if path.is_file() else current[stage.name]
        other = [name for name, digest in current[stage.name].items() if recorded.get(name) != digest]
        upstream = [name for name in stage.needs if found[name][0] in (CHANGED, STALE)]
        try:
            check_free(stage.folder, stage.config)
        except ValueError as error:
            found[stage.name] = CHANGED, str(error)
            continue
        if upstream or other:
            found[stage.name] = STALE, f"made of {', '.join(upstream or other)} as it was before"
        else:
            found[stage.name] = COMPLETE if complete(stage) else BEGUN, ""
    return found


def check_states(stages: Sequence[Stage]) -> None:
    """Raises ValueError that names the stages which were run with other settings, and those that depend on them."""
    found = states(stages)
    wrong = {name: reason for name, (state, reason) in found.items() if state in (CHANGED, STALE)}
    if not wrong:
        return
    changed = [name for name, (state, _) in found.items() if state == CHANGED]
    stale = [name for name in wrong if name not in changed]
    said = [f"stage {name!r} was run otherwise: {wrong[name]}" for name in changed]
    said += [f"stale: {', '.join(f'{name} ({wrong[name]})' for name in stale)}"] if stale else []
    raise ValueError(
        f"{'; '.join(said)}. Nothing was changed. --redo={STALE} moves the folders of {', '.join(wrong)} aside and runs"
        " them anew; another --workdir keeps both"
    )


def check_directory(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError unless `workdir` is new, or a run or pipeline of this config, none of whose stages is stale."""
    check_free(workdir, config)
    if config.stages:
        check_states(graph_of(config, workdir))


def redo(stages: Sequence[Stage], names: Sequence[str]) -> None:
    """Moves the folders of stages, and of those that depend on them, aside: to `<stage>.1`, or the next free number."""
    found = states(stages)
    wanted = {name for name in names if name != STALE}
    if STALE in names:
        wanted |= {name for name, (state, _) in found.items() if state in (CHANGED, STALE)}
    for stage in stages:
        if wanted & set(stage.needs):
            wanted.add(stage.name)
    for stage in stages:
        if stage.name in wanted and (stage.folder / "config.json").is_file():
            numbers = (stage.folder.with_name(f"{stage.name}.{n}") for n in range(1, 1000))
            move(stage.folder, next(path for path in numbers if not path.exists()))


def dry_run(config: ConfigDict, workdir: Path, choice: Choice = EVERY) -> str:
    """The graph in words: every stage with its state, what it starts from and what it reads."""
    stages = graph_of(config, workdir)
    chosen = {stage.name for stage in chosen_stages(stages, choice)}
    found = {name: state if name in chosen else f"({state})" for name, (state, _) in states(stages).items()}
    return "\n".join(drawn(stages, found))


@dataclasses.dataclass(frozen=True)
class Coming(Origin):
    """What a stage will have trained, before it has: its model and its tokenizer, and no parameters."""

    own: Tokenizer | None = None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it will save."""
        assert self.own is not None
        return self.own


def check_stages(stages: Sequence[Stage], builders: Builders, ended: Collection[str]) -> None:
    """Builds every stage on shapes, those that start from another on what that will be; raises what the first bad one
    raises, before any trains. Of stages that read files which are yet to be written, what can be built without.
    """
    coming: dict[str, Origin] = {}
    for stage in stages:
        if stage.name in ended:
            continue
        plan, waits = stage.config, not set(stage.needs_files) <= set(ended)
        with _prepared(stage, coming) as setup:
            said: dict[str, Any] = {"algorithm": plan.algorithm, "resolved": setup.model.config.to_dict()}
            if waits or plan.algorithm in JOBS:
                builders.update(setup)
            else:
                ending = builders.build(setup).evaluation.ending(plan.steps - 1, None)
                said |= {"ending": plain(ending.to_dict())} if ending.tokens else {}
            if plan.algorithm not in LEAVE_NO_MODEL:
                coming[str(stage.folder)] = Coming(stage.folder, setup.model, said, setup.tokenizer)


@contextlib.contextmanager
def _prepared(stage: Stage, coming: Mapping[str, Origin]) -> Iterator[Setup]:
    """A stage's setup, of which nothing runs: where it keeps parameters, it is given their shapes."""
    with using(parse_rules(stage.config.sharding)):
        setup = prepare(stage.config, stage.folder, lambda text: None, coming)
        try:
            yield dataclasses.replace(setup, make_params=setup.model.abstract)
        finally:
            setup.judge.close()
