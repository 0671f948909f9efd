"""Where the runs of a sweep are trained, and what is seen of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from train.console import Interrupt

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its directory, the settings it changes, and what follows `python` to train it."""

    folder: Path
    settings: dict[str, Any]
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where its output goes: beside the directory, which belongs to `train` alone."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def complete(self) -> bool:
        """Whether it has its result."""
        return (self.folder / "result.json").is_file()


Report = Callable[[Run, str], None]
Launcher = Callable[[Sequence[Run], int, Report], None]


def run_locally(runs: Sequence[Run], parallel: int, report: Report) -> None:
    """Trains on this machine, `parallel` runs at a time; when stopped, the running ones save a checkpoint first."""
    waiting, running = deque(runs), dict[str, tuple[Run, subprocess.Popen[bytes]]]()
    with Interrupt() as interrupt:
        try:
            while (waiting or running) and not interrupt.requested:
                while waiting and len(running) < parallel:
                    run = waiting.popleft()
                    running[run.name] = run, start(run)
                time.sleep(0.2)
                for run, process in list(running.values()):
                    code = process.poll()
                    report(run, state_of(run, code))
                    if code is not None:
                        del running[run.name]
        finally:
            for _, process in running.values():
                process.terminate()
            for run, process in running.values():
                report(run, state_of(run, process.wait()))


def start(run: Run) -> subprocess.Popen[bytes]:
    """Starts `python -m train`; runs of one sweep share their compiled programs."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"JAX_COMPILATION_CACHE_DIR": str(run.folder.parent.absolute() / ".compiled"), **os.environ}
    command = [sys.executable, *run.command]
    with open(run.log, "ab") as log:
        # A session of its own: Ctrl-C reaches the sweep alone, which then lets the run save its state.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def state_of(run: Run, code: int | None) -> str:
    """What a process with this exit code (None: still there) says of its run."""
    if code is None:
        return RUNNING
    return DONE if run.complete else STOPPED if code == 0 else FAILED


LAUNCHERS: dict[str, Launcher] = {"local": run_locally}


class Board:
    """A `Report`: a live table on a terminal, elsewhere a line whenever a run changes its state."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Shows nothing yet; used as a context."""
        self._states = {run.name: (DONE if run.complete else WAITING, "") for run in runs}
        self._live = Live(get_renderable=self._table, refresh_per_second=2) if sys.stdout.isatty() else None

    def __enter__(self) -> Board:
        """Begins to show."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table standing."""
        if self._live:
            self._live.stop()

    def __call__(self, run: Run, state: str) -> None:
        """A run is in this state."""
        changed = self._states[run.name][0] != state
        self._states[run.name] = state, detail(run, state)
        if changed and not self._live:
            print(f"[{self._summary()}] {run.name}: {state}  {self._states[run.name][1]}".rstrip(), flush=True)

    def _summary(self) -> str:
        counts = Counter(state for state, _ in self._states.values())
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def _table(self) -> Table:
        table = Table("run", "state", "", title=self._summary())
        for name, (state, words) in self._states.items():
            if state not in (WAITING, DONE):
                table.add_row(Text(name), state, Text(words))
        return table


def detail(run: Run, state: str) -> str:
    """A word on a run: its figures once it is done, until then the last line it printed."""
    if state == DONE:
        stage = json.loads((run.folder / "result.json").read_text())["stages"][-1]
        return ", ".join(f"{key} {value:.4g}" for key, value in stage.items() if isinstance(value, int | float))
    return last_line(run.log)


def last_line(path: Path, reach: int = 4096) -> str:
    """The last line with something in it, looked for in the last `reach` bytes."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - reach))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
