"""Stages: runs of the one loop that hand their parameters on."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data.tokenizers.base import Tokenizer
from infer.load import Origin
from model.config import unknown
from model.sharding import parse_rules, using
from store.records import plain, replace_text, write_json
from store.run_directory import check_free, claim, provenance, release, set_aside
from train.curves import plot_curves
from train.settings import PER_RUN, merge
from train.setup import Algorithm, Setup, prepare

Run = Callable[[ConfigDict, Path], dict[str, Any]]
Build = Callable[[Setup], Algorithm]


def stage_config(config: ConfigDict, name: str, previous: Path | None) -> ConfigDict:
    """The whole config of one stage: the pipeline's, changed by `config.stage.<name>`; unknown keys raise.

    It starts from `previous`, unless it names an `init_from` of its own.
    """
    if name not in config.stage:
        raise ValueError(unknown("stage", name, config.stage))
    for key in PER_RUN:
        if key in config.stage[name]:
            raise ValueError(f"stage.{name}.{key}: a stage has no {key} to choose")
    stage = ConfigDict(config.to_dict())
    stage.stages, stage.stage = (), ConfigDict()
    stage.name = f"{config.name}/{name}"
    merge(stage, config.stage[name], f"stage.{name}")
    if previous is not None and "init_from" not in config.stage[name]:
        stage.init_from = str(previous)
    return stage.lock()


def runs_of(config: ConfigDict, workdir: Path = Path()) -> list[ConfigDict]:
    """The runs that a config stands for: itself, or its stages, each starting from the one before."""
    if not config.stages:
        return [config]
    before = [None, *(workdir / name for name in config.stages)]
    return [stage_config(config, name, folder) for name, folder in zip(config.stages, before, strict=False)]


def run_stages(config: ConfigDict, workdir: Path, run: Run, build: Build) -> dict[str, Any]:
    """Runs the stages in order, each in its own folder and from the parameters before it.

    `run` trains one stage, `build` makes of its setup what would be trained. Finished stages are not run again. All
    stages are built before the first one trains; a pipeline of which one cannot be built, or whose first stage is
    refused at its start, leaves nothing behind.
    """
    started = time.perf_counter()
    folders = [workdir / name for name in config.stages]
    plans = runs_of(config, workdir)
    for plan, folder in zip(plans, folders, strict=True):
        check_free(folder, plan)
    new = not (workdir / "config.json").is_file()
    if not all((folder / "config.json").is_file() for folder in folders):
        check_stages(plans, folders, build)
    claim(workdir, config)
    set_aside(workdir)
    results = []
    for plan, folder in zip(plans, folders, strict=True):
        try:
            result = run(plan, folder)
        except Exception:
            if new and not any((folder / "config.json").is_file() for folder in folders):
                release(workdir)
            raise
        if result["status"] != "complete":
            return {**result, "workdir": str(workdir)}
        results.append(result)
    rows = [{**result["stages"][0], "name": name} for name, result in zip(config.stages, results, strict=True)]
    result = {
        "status": "complete",
        "name": config.name,
        "stages": rows,
        "evaluation": results[-1]["evaluation"],
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "compilations": sum(result["compilations"] for result in results),
        "wall_seconds": round(time.perf_counter() - started, 2),
        **provenance(config),
    }
    _gather(folders, workdir)
    write_json(workdir / "result.json", result)
    return result


@dataclasses.dataclass(frozen=True)
class Coming(Origin):
    """What a stage will have trained, before it has: its model and its tokenizer, and no parameters."""

    own: Tokenizer | None = None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it will save."""
        assert self.own is not None
        return self.own


def check_stages(plans: Sequence[ConfigDict], folders: Sequence[Path], build: Build) -> None:
    """Builds every stage on shapes, those that start from another on what that will be; raises what the first bad one
    raises, before any trains.
    """
    coming: dict[str, Coming] = {}
    for plan, folder in zip(plans, folders, strict=True):
        with _built(plan, folder, coming, build) as (setup, algorithm):
            ending = algorithm.evaluation.ending(plan.steps - 1, None)
            said = {"algorithm": plan.algorithm, "resolved": setup.model.config.to_dict()}
            said |= {"ending": plain(ending._asdict())} if ending.tokens else {}
            coming[str(folder)] = Coming(folder, setup.model, said, setup.tokenizer)


@contextlib.contextmanager
def _built(
    plan: ConfigDict, folder: Path, coming: Mapping[str, Origin], build: Build
) -> Iterator[tuple[Setup, Algorithm]]:
    """A stage's setup and algorithm, of which nothing runs: where it keeps parameters, it is given their shapes."""
    with using(parse_rules(plan.sharding)):
        setup = prepare(plan, folder, lambda text: None, coming)
        try:
            yield setup, build(dataclasses.replace(setup, make_params=setup.model.abstract))
        finally:
            setup.judge.close()


def _gather(folders: list[Path], workdir: Path) -> None:
    """One samples.jsonl and one curves.png over all stages."""
    # Whole files: what models write may hold what `splitlines` takes for the end of a line.
    texts = [(folder / "samples.jsonl").read_bytes().decode() for folder in folders]
    replace_text(workdir / "samples.jsonl", "".join(texts))
    plot_curves(folders, workdir / "curves.png")
