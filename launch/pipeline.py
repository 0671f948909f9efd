"""A pipeline's stages on this machine or a cluster, independent ones side by side:

python -m launch.pipeline --config=configs/pipelines/r1.py --workdir=runs/r1 --parallel=2 [--launcher=ray]

Each stage is `python -m train ... --only=<stage>` in a process of its own, begun once the stages that it needs have
ended. Finished stages are passed over, broken ones go on; the same command again resumes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from launch.board import Board, last_line
from launch.launchers import LAUNCHERS, check_installed, launcher
from launch.needs import needs_of
from launch.runs import Run, train_all
from launch.sweep import Parser
from store.lock import locked
from store.objects import place
from store.run_directory import claim
from train.cli import Wanted, guarded, parse, report
from train.graph import Stage, graph_of
from train.pipeline import check_directory, chosen_stages, complete, dry_run, finish, redo

USAGE = "usage: python -m launch.pipeline --config=configs/pipelines/r1.py --workdir=runs/r1 [--parallel=2]"


def parser() -> Parser:
    """The flags of `python -m launch.pipeline` besides those of `python -m train`."""
    flags = Parser("python -m launch.pipeline", description="Run a pipeline's stages side by side.", allow_abbrev=False)
    flags.add_argument("--config", required=True, help="a recipe with stages")
    flags.add_argument("--workdir", required=True, help="the pipeline's directory")
    flags.add_argument("--launcher", default="local", help=" | ".join(LAUNCHERS))
    flags.add_argument("--parallel", type=int, default=1, help="stages at a time")
    return flags


def stage_runs(wanted: Wanted, flags: list[str]) -> list[Run]:
    """A run for every stage, with those that it comes after; `flags`: the command's own."""
    runs: dict[str, Run] = {}
    for stage in graph_of(wanted.config, wanted.workdir):
        command = ("-m", "train", *flags, f"--only={stage.name}")
        after = tuple(runs[name] for name in stage.needs)
        runs[stage.name] = Run(stage.folder, {}, command, needs_of(stage.config), after=after)
    return list(runs.values())


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when every stage is complete, 1 when one is not, 2 for wrong use."""
    return guarded(lambda: _launch(*parser().parse_known_args(arguments)))


def _launch(options: argparse.Namespace, more: list[str]) -> None:
    if options.parallel < 1:
        raise ValueError(f"--parallel must be at least 1, found {options.parallel}")
    named = [f"--config={options.config}", f"--workdir={options.workdir}"]
    wanted = parse(["train", *named, *more], USAGE)
    config, workdir = wanted.config, place(options.workdir)
    if not config.stages:
        raise ValueError(f"{config.name!r} has no stages: start it by python -m train")
    own = [flag for flag in more if flag.startswith("--config.")]
    stages = graph_of(config, workdir)
    names = [stage.name for stage in chosen_stages(stages, wanted.choice)]
    runs = [run for run in stage_runs(wanted, [*named, *own]) if run.name in names]
    train_on = launcher(options.launcher, runs)
    if wanted.dry_run:
        print(dry_run(config, workdir, wanted.choice))
        for run in runs:
            print(shlex.join(["python", *run.command]))
        return
    check_installed(options.launcher)
    with locked(workdir, print):
        if wanted.choice.redo:
            redo(stages, wanted.choice.redo)
        check_directory(workdir, config)
        claim(workdir, config)
        left = [run for run in runs if not run.complete]
        with train_on(left, options.parallel) as submit, Board(runs) as board:
            train_all(left, options.parallel, board, submit)
        _tell(wanted, workdir, stages, runs)


def _tell(wanted: Wanted, workdir: Path, stages: list[Stage], runs: list[Run]) -> None:
    """The pipeline's result once all stages have ended; RuntimeError that names those that have not."""
    missing = [run for run in runs if not run.complete]
    if missing:
        said = "; ".join(f"{run.name}: {last_line(run.log) or 'not begun'}" for run in missing[:3])
        raise RuntimeError(f"stages that did not finish: {said}. The same command again goes on from there")
    if all(complete(stage) for stage in stages):
        report(finish(wanted.config, workdir, stages, 0.0), workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
