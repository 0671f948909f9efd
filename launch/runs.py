"""Runs, the jobs that train them, and the loop that sees them through."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.needs import Needs
from store.objects import on_disk
from store.run_directory import is_complete
from train.console import Interrupt

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
ALIVE = (WAITING, RUNNING)
TICK = 0.2  # seconds between two looks at the jobs
# A run ends with whoever started it: begun again, it must not find itself still writing into its directory.
MORTAL = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its directory, the settings it changes, what follows `python` to train it, what it takes; the
    steps of each of its stages, () where they are not known; the runs that must be complete before it begins.
    """

    folder: Path
    settings: dict[str, Any]
    command: tuple[str, ...]
    needs: Needs = field(default_factory=Needs)
    steps: tuple[int, ...] = ()
    after: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where its output goes: beside the directory, which belongs to `train` alone."""
        return self.beside / f"{self.name}.log"

    @property
    def beside(self) -> Path:
        """The local folder of what launchers keep: that of the sweep, or of runs in a bucket one in ./runs/gs."""
        return on_disk(self.folder.parent)

    @property
    def complete(self) -> bool:
        """Whether it has its result, of all its steps."""
        return is_complete(self.folder, self.steps) if self.steps else (self.folder / "result.json").is_file()


class Job(Protocol):
    """A run that was handed to a launcher."""

    def poll(self) -> str:
        """The state it is in."""

    def stop(self) -> None:
        """Asks it to save a checkpoint and end; `poll` tells when it has."""


Report = Callable[[Run, str], None]
Submit = Callable[[Run, int], Job]  # the number is that of a slot, 0 to `parallel` - 1, nobody else's while it trains
Launcher = Callable[[Sequence[Run], int], AbstractContextManager[Submit]]  # runs to come, how many at a time


def train_all(runs: Sequence[Run], parallel: int, report: Report, submit: Submit) -> None:
    """Trains `parallel` runs at a time, each after those that it comes after; when stopped, the running ones save a
    checkpoint first. A run whose predecessor did not finish is not begun, and has failed.
    """
    waiting, running = list(runs), dict[int, tuple[Run, Job]]()
    with Interrupt(signals=(signal.SIGTERM,)) as interrupt:
        try:
            while (waiting or running) and not interrupt.requested:
                for slot in sorted(set(range(parallel)) - set(running)):
                    ready = next((run for run in waiting if all(other.complete for other in run.after)), None)
                    if ready is not None:
                        waiting.remove(ready)
                        begin(ready, slot, running, report, submit)
                if waiting and not running:
                    give_up(waiting, report)
                    break
                time.sleep(TICK)
                look(running, report)
        finally:
            for _, job in running.values():
                job.stop()
            while running:
                time.sleep(TICK)
                look(running, report)


def give_up(waiting: Sequence[Run], report: Report) -> None:
    """Says of runs that what they come after did not finish."""
    for run in waiting:
        names = ", ".join(other.name for other in run.after if not other.complete)
        note(run, f"not started: {names} did not finish")
        report(run, FAILED)


def begin(run: Run, slot: int, running: dict[int, tuple[Run, Job]], report: Report, submit: Submit) -> None:
    """Hands a run to the launcher; one that is refused has failed, with the reason in its log."""
    try:
        running[slot] = run, submit(run, slot)
    except (OSError, RuntimeError) as error:
        note(run, f"not started: {error}")
        report(run, FAILED)


def look(running: dict[int, tuple[Run, Job]], report: Report) -> None:
    """Reports every job, and forgets those that ended."""
    for slot, (run, job) in list(running.items()):
        state = job.poll()
        report(run, state)
        if state not in ALIVE:
            del running[slot]


def note(run: Run, words: str) -> None:
    """Writes a line of the launcher's own into a run's log."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "a") as log:
        log.write(f"{words}\n")


def state_of(run: Run, code: int | None) -> str:
    """What a process with this exit code (None: still there) says of its run."""
    if code is None:
        return RUNNING
    return DONE if run.complete else STOPPED if code == 0 else FAILED


def start(
    run: Run, environment: Mapping[str, str] | None = None, root: Path | None = None, rank: int = 0
) -> subprocess.Popen[bytes]:
    """Starts `python -m train` in the folder `root`; runs of one sweep share their compiled programs.

    Of several processes of a run each has its own `rank` and log.
    """
    root = root or Path.cwd()
    log = root / (run.log.with_suffix(f".{rank}.log") if rank else run.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(root / run.beside / ".compiled")}
    with open(log, "ab") as output:
        if output.tell():  # what an earlier try ended with is not the last line any more
            output.write(b"starting again\n")
            output.flush()
        # A session of its own: Ctrl-C reaches the sweep alone, which then lets the run save its state.
        return subprocess.Popen(
            [*MORTAL, sys.executable, *run.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            env={**compiled, **os.environ, **(environment or {})},
            start_new_session=True,
        )


def attend(run: Run, environment: Mapping[str, str], root: Path, rank: int = 0) -> int:
    """Trains on the machine it is called on and returns the exit code; KeyboardInterrupt lets the run save first."""
    return ended(start(run, environment, root, rank))


def ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process; the first KeyboardInterrupt asks it to save, further ones change nothing."""
    hear_interrupts()
    asked = False
    while (code := process.poll()) is None:
        try:
            time.sleep(TICK)  # not `wait`: an interrupt that another thread raises does not end a system call
        except KeyboardInterrupt:
            if not asked:
                process.terminate()
            asked = True
    return code


def hear_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so does all that this starts: no longer."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def peers(address: str, hosts: int, rank: int) -> dict[str, str]:
    """What tells a process of a run on several hosts where the others are; nothing on a single one."""
    if hosts == 1:
        return {}
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts), "JAX_PROCESS_ID": str(rank)}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
