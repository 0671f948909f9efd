"""Runs that are a line of Python instead of a training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launch.needs import Needs
from launch.runs import Launcher, Run, train_all

FINISH = 'folder.mkdir(); (folder / "result.json").write_text(\'{"stages": [{"name": "sft", "seconds": 2.25}]}\')'


def dummy(folder: Path, name: str, script: str, needs: Needs | None = None) -> Run:
    """A run whose process executes `script`, which knows its directory as `folder`."""
    imports = f"import os, pathlib, signal, sys, time; folder = pathlib.Path({str(folder / name)!r})"
    return Run(folder / name, {}, ("-c", f"{imports}; {script}"), needs or Needs())


def states(launcher: Launcher, runs: Sequence[Run], parallel: int) -> dict[str, list[str]]:
    """Trains runs and returns the states each went through."""
    seen: dict[str, list[str]] = {run.name: [] for run in runs}

    def report(run: Run, state: str) -> None:
        if seen[run.name][-1:] != [state]:
            seen[run.name].append(state)

    with launcher(runs, parallel) as submit:
        train_all(runs, parallel, report, submit)
    return seen


def gone(process: int, patience: int = 1000) -> bool:
    """Whether a process has ended, or does so within hundredths of a second."""
    for _ in range(patience):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
