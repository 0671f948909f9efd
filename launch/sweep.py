"""Trains every setting of a sweep, each by its own `python -m train`, so that one that breaks stops no other:

    python -m launch.sweep --config=configs/ablations/moe_balance.py --workdir=runs/balance [--parallel=2] [--dry_run]

Beside `get_config` the config file has a generator `sweep()` of dicts such as {"model.moe.balance": "bias", "seed": 0}:
the settings that one run changes. Further flags, such as --config.steps=50, hold for all runs. Finished runs are left
as they are and broken ones resumed, so the same command again completes a sweep. --launcher=ray and --launcher=slurm
hand the runs to a cluster, which gives each what `config.launch` asks for: docs/pods.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from launch.board import Board, last_line
from launch.launchers import LAUNCHERS, check_installed, launcher
from launch.needs import needs_of
from launch.runs import Run, train_all
from store.objects import place
from store.records import plain, write_json
from store.run_directory import read_parts
from train.cli import guarded, parse
from train.pipeline import check_directory, runs_of, trained_steps
from train.settings import PER_RUN, load_module, settings_read

PLAN = "sweep.json"
LONGEST_NAME = 200  # file systems end at 255 bytes
Settings = dict[str, Any]


def plan(config: str, workdir: Path, flags: Sequence[str] = (), only: str = "") -> list[Run]:
    """The runs of a sweep; `config` as in `python -m train`, `flags` for all of them. Starts and writes nothing.

    Raises ValueError or UsageError for what would stop a run with `only` in its name at its start: an unknown setting,
    a value of another type, a directory that belongs to another config.
    """
    if (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} is the directory of a single run; choose another --workdir for the sweep")
    changes = changes_of(Path(config.split(":", 1)[0]))
    runs, configs = [], {}
    for name, settings in zip(run_names(changes), changes, strict=True):
        own = (f"--config.{key}={in_words(value)}" for key, value in settings.items())
        command = ("-m", "train", f"--config={config}", f"--workdir={workdir / name}", *own, *flags)
        run = Run(workdir / name, settings, command)
        if only in name:
            configs[name] = check(run)
            steps = tuple(trained_steps(configs[name]))
            run = dataclasses.replace(run, needs=needs_of(configs[name]), steps=steps)
        runs.append(run)
    check_different(configs)
    return runs


def changes_of(path: Path) -> list[Settings]:
    """What the `sweep()` of a config file yields."""
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path} has no sweep(), a generator of dicts such as {{'optimizer.lr': 1e-3, 'seed': 0}}")
    return list(module.sweep())


def check(run: Run) -> ConfigDict:
    """The config of a run, by its flags as `python -m train` reads them: is it what was wanted, the directory free?"""
    config, folder, *_ = parse(["train", *run.command[2:]], "usage: python -m launch.sweep --config=... --workdir=...")
    for key, wanted in run.settings.items():
        in_stages = config.stages and key not in (*PER_RUN, "init_from") and not key.startswith("stage.")
        for part in (config, *(runs_of(config, folder) if in_stages else ())):
            value = functools.reduce(lambda group, name: group[name], key.split("."), part)
            value = value.to_dict() if isinstance(value, ConfigDict) else value
            if plain(value) != plain(wanted) and f"stage.{part.name.rpartition('/')[2]}.{key}" not in run.settings:
                raise ValueError(f"{run.name} is to have {key}={wanted!r}, but its flags make that {value!r}")
    check_directory(folder, config)
    return config


def check_different(configs: Mapping[str, ConfigDict]) -> None:
    """Raises ValueError for runs, by name, that would train the very same: whose settings differ in nothing that is
    read.
    """
    first: dict[str, str] = {}
    for name, config in configs.items():
        read = json.dumps([plain(settings_read(stage)) for stage in runs_of(config)], sort_keys=True, default=str)
        if read in first:
            raise ValueError(
                f"{first[read]!r} and {name!r} would be the same run twice: no stage of this recipe reads what sweep()"
                " changes between them. Change a setting that is read, or leave one of them out"
            )
        first[read] = name


def run_names(changes: Sequence[Settings]) -> list[str]:
    """A readable directory name for each run: `balance=bias,seed=0`, or its own "name" and the seed.

    A setting is shortened to its last part where that is unambiguous. Raises ValueError when two runs are named alike.
    """
    tails = Counter(key.rpartition(".")[2] for key in {key for settings in changes for key in settings})
    names = [name_of(settings, tails) for settings in changes]
    for name, times in Counter(names).items():
        if times > 1 or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"{times} of the runs would be named {name!r}; give each its own short 'name' in sweep()")
    return names


def name_of(settings: Settings, tails: Counter[str]) -> str:
    """One run's name; `tails` counts the last parts of all settings."""
    named = "name" in settings
    parts = [settings["name"]] if named else []
    for key, value in settings.items():
        tail = key.rpartition(".")[2]
        if not named or key == "seed":
            parts.append(f"{tail if tails[tail] == 1 else key}={in_words(value)}")
    return re.sub(r"[^\w.=,+-]+", "-", ",".join(parts))


def in_words(value: Any) -> str:
    """A value as a flag takes it."""
    return value if isinstance(value, str) else repr(value)


class Parser(argparse.ArgumentParser):
    """Wrong flags raise, so that they are told like every other wrong use."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError with argparse's words."""
        raise ValueError(f"{message}; {self.prog} --help lists the flags")


def parser() -> Parser:
    """The flags of `python -m launch.sweep`."""
    flags = Parser("python -m launch.sweep", description="Train every setting of a sweep.", allow_abbrev=False)
    flags.add_argument("--config", required=True, help="a config file with a generator sweep()")
    flags.add_argument("--workdir", required=True, help="where each run gets its directory")
    flags.add_argument("--launcher", default="local", help=" | ".join(LAUNCHERS))
    flags.add_argument(
        "--parallel", type=int, help="runs at a time (local: 1, clusters: as many as they have room for)"
    )
    flags.add_argument("--filter", default="", help="only runs whose name has this in it")
    flags.add_argument("--dry_run", action="store_true", help="show the commands and start nothing")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when every run is complete, 1 when one is not, 2 for wrong use."""
    return guarded(lambda: sweep(*parser().parse_known_args(arguments)))


def sweep(options: argparse.Namespace, flags: list[str]) -> None:
    """Plans the runs, starts those that are not complete, and says what came out."""
    if options.parallel is not None and options.parallel < 1:
        raise ValueError(f"--parallel must be at least 1, found {options.parallel}")
    workdir = place(options.workdir)
    runs = plan(options.config, workdir, flags, options.filter)
    chosen = [run for run in runs if options.filter in run.name]
    if not chosen:
        raise ValueError(f"no run has {options.filter!r} in its name; there are {', '.join(run.name for run in runs)}")
    train_on = launcher(options.launcher, chosen)
    if options.dry_run:
        for run in chosen:
            print(f"{'complete' if run.complete else 'to do':9}{shlex.join(['python', *run.command])}")
            print(f"{'':9}{run.needs}") if options.launcher != "local" else None
        return
    check_installed(options.launcher)
    left = [run for run in chosen if not run.complete]
    parallel = options.parallel or (1 if options.launcher == "local" else len(left))
    with train_on(left, parallel) as submit:
        record(workdir, options.config, runs)
        with Board(chosen) as board:
            train_all(left, parallel, board, submit)
    missing = [run for run in chosen if not run.complete]
    refused = [run for run in missing if not (run.folder / "config.json").is_file() and run.log.is_file()]
    if missing and refused == missing:
        said = last_line(refused[0].log)
        raise ValueError(f"{len(refused)} of {len(chosen)} runs were refused before their first step: {said}")
    if missing:
        logs = ", ".join(str(run.log) for run in missing[:4])
        raise RuntimeError(
            f"{len(missing)} of {len(chosen)} runs did not finish (see {logs}); the same command again resumes them"
        )
    print(f"{len(chosen)} runs complete; python -m launch.report {workdir}")


def record(workdir: Path, config: str, runs: Sequence[Run]) -> None:
    """Writes sweep.json; ValueError where another config's sweep lies."""
    recorded = read_plan(workdir)["config"] or config
    if recorded != config:
        raise ValueError(f"{workdir} holds the sweep of {recorded}; choose another --workdir for that of {config}")
    entries = [{"name": run.name, "overrides": run.settings} for run in runs]
    write_json(workdir / PLAN, {"config": config, "runs": entries})


def read_plan(workdir: Path) -> dict[str, Any]:
    """What sweep.json holds: the `config`'s path and the `runs`, each with its `name`; of a folder without it neither.

    Raises ValueError that names the file where that is no plan of a sweep.
    """
    path, advice = workdir / PLAN, "delete it, and the command of the sweep writes it anew"
    saved = path.is_file() and read_parts(path, "runs", {"config": str, "runs": list}, advice)
    return saved or {"config": "", "runs": []}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
