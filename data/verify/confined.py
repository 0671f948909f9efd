"""Runs Python programs that nobody trusts: starts the sandbox, talks to it within limits, ends it.

Nothing here runs a program in this process, and nothing waits longer than it was told.
"""

import contextlib
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data.names import unknown_name
from data.verify.removal import hold, remove
from data.verify.syscalls import filter_program

SANDBOX = Path(__file__).resolve().with_name("sandbox.py")
FAILED = 97
ISOLATIONS = ("namespaces", "none")
# What the interpreter and its libraries need; of all this only what exists is shown, and read-only.
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null")
CHUNK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a program may use: `seconds` of wall clock, bytes of address space for each process (`memory`), of output
    and of files (`disk`), and how many `files` it may open and `processes` it may be.
    """

    seconds: float = 4.0
    memory: int = 512 << 20
    output: int = 1 << 20
    disk: int = 16 << 20
    files: int = 32
    processes: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.seconds < 3600 or min(self.memory, self.output, self.disk, self.files, self.processes) < 1:
            raise ValueError(f"limits must be above 0, and seconds below 3600: {self}")


@dataclass(frozen=True)
class Outcome:
    """How a program ended: what it wrote (up to the limit), its exit status, and why it was stopped ("" if it was
    not: "timeout" or "output").
    """

    stdout: bytes
    status: int
    stopped: str


class Confined:
    """One program in its sandbox, with pipes to its standard input and output; a context manager that ends it."""

    def __init__(self, program: str, limits: Limits, isolation: str, arguments: tuple[str, ...] = ()) -> None:
        """Starts the program; ValueError for an isolation that does not exist."""
        if isolation not in ISOLATIONS:
            raise unknown_name("isolation", isolation, ISOLATIONS)
        self.folder = tempfile.mkdtemp(prefix="sagax-code-") if isolation == "none" else ""
        if self.folder:
            self._held = hold(self.folder)
            Path(self.folder, "main.py").write_text(program, encoding="utf-8", errors="replace")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the program
        spec = _spec(program, limits, isolation, arguments) | {"folder": self.folder}
        self._start(json.dumps(spec).encode())
        self.unsent = bytearray()
        self.deadline = time.monotonic() + limits.seconds

    def _start(self, spec: bytes) -> None:
        handed = os.memfd_create("spec")
        try:
            os.write(handed, spec)
            os.lseek(handed, 0, os.SEEK_SET)
            self.process = subprocess.Popen(
                [_python(), "-I", "-S", str(SANDBOX), str(handed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={},
                bufsize=0,
                pass_fds=(handed,),
                start_new_session=True,
            )
        finally:
            os.close(handed)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.ending = os.pidfd_open(self.process.pid)
        for descriptor in (self.input, self.output):
            os.set_blocking(descriptor, False)

    def write(self) -> None:
        """Writes what waits, as much as the pipe takes; nothing when the program reads no more."""
        try:
            while self.unsent:
                del self.unsent[: os.write(self.input, self.unsent[:CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()

    def read(self) -> bytes | None:
        """Returns what the program wrote since (at most CHUNK bytes), b"" at the end, None when there is nothing."""
        try:
            return os.read(self.output, CHUNK)
        except BlockingIOError:
            return None

    def end_input(self) -> None:
        """Closes the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def left(self) -> float:
        """Returns the seconds that remain to it."""
        return max(0.0, self.deadline - time.monotonic())

    def complaint(self) -> str:
        """Returns what the sandbox itself had to say, which is nothing once the program runs."""
        self._complaints.seek(0)
        return self._complaints.read(2000).decode(errors="replace").strip()

    def end(self, grace: float = 0.0) -> int:
        """Kills what is left of the program, after so many seconds for it to end by itself, and returns its status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        return self.process.returncode if self.process.returncode is not None else -signal.SIGKILL

    def __enter__(self) -> Self:
        """Returns the program itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the program."""
        self.end()
        os.close(self.ending)
        for pipe in (self.process.stdin, self.process.stdout, self._complaints):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if self.folder:
            remove(self.folder, self._held)


def run(program: str, stdin: bytes, limits: Limits, isolation: str) -> Outcome:
    """Runs a program to its end with the given standard input; RuntimeError when the sandbox itself fails."""
    with Confined(program, limits, isolation) as running:
        running.unsent += stdin
        stdout, stopped = _exchange(running, limits.output)
        status = running.end()
        if status == FAILED and running.complaint():
            raise RuntimeError(f"the sandbox does not start: {running.complaint()}")
    return Outcome(stdout, status, stopped)


def check_isolation(isolation: str) -> None:
    """Raises RuntimeError unless programs can be run with this isolation here, and says what else there is."""
    reason = unavailable(isolation)
    if reason:
        advice = "; isolation='none' runs code with resource limits only (docs/security.md)"
        raise RuntimeError(f"no sandbox with {isolation} here: {reason}{advice if isolation != 'none' else ''}")


@cache
def unavailable(isolation: str) -> str:
    """Returns why an isolation does not work on this machine, or an empty text; it is tried once."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    try:
        outcome = run("print(6 * 7)", b"", Limits(seconds=30.0), isolation)
    except (RuntimeError, OSError) as error:
        return str(error)
    return "" if outcome.stdout == b"42\n" else f"a trial program failed with status {outcome.status}"


def _exchange(running: Confined, most: int) -> tuple[bytes, str]:
    """Feeds and reads a program until it ends; returns its output and why it was stopped."""
    output, open_input = bytearray(), True
    while True:
        if open_input and not running.unsent:
            running.end_input()
            open_input = False
        events = _wait(running, open_input)
        if open_input:
            running.write()
        while (part := running.read()) and len(output) <= most:
            output += part
        if len(output) > most:
            return bytes(output[:most]), "output"
        if running.ending in events:
            return bytes(output), ""
        if not running.left():
            return bytes(output), "timeout"


def _wait(running: Confined, writing: bool) -> set[int]:
    poll = select.poll()
    poll.register(running.ending, select.POLLIN)
    poll.register(running.output, select.POLLIN)
    if writing:
        poll.register(running.input, select.POLLOUT)
    events = dict(poll.poll(running.left() * 1000 + 1))
    if events.get(running.output, 0) & ~select.POLLIN and len(events) == 1:
        # It closed its output and goes on: nothing is left to wait for but its end.
        only_end = select.poll()
        only_end.register(running.ending, select.POLLIN)
        only_end.poll(running.left() * 1000 + 1)
    return set(events)


def _spec(program: str, limits: Limits, isolation: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    binds, links = _shown()
    return {
        "isolation": isolation,
        "program": program,
        "arguments": arguments,
        "python": _python(),
        "binds": binds,
        "links": links,
        "disk": limits.disk,
        "filter": filter_program(platform.machine()).hex(),
        "limits": {
            "AS": limits.memory,
            "CPU": ceil(limits.seconds) + 1,
            "FSIZE": limits.disk,
            "NOFILE": limits.files,
            "NPROC": limits.processes,
            "CORE": 0,
        },
    }


@cache
def _python() -> str:
    """Returns the interpreter behind the virtual environment, if this is one."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _shown() -> tuple[list[str], dict[str, str]]:
    """Returns the paths that a program may read, and the links among them with what they point to."""
    own = [os.path.realpath(sys.base_prefix), os.path.dirname(_python())]
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    paths = [path for path in SYSTEM if os.path.exists(path) and path not in links]
    for path in own:
        if not any(path == shown or path.startswith(f"{shown}/") for shown in paths):
            paths.append(path)
    return paths, links
