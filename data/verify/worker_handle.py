"""A parent's end of one worker process: its channel without waiting, its deadline, its end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().with_name("worker.py")
LENGTH = 4
MOST_REPLY = 1 << 20
MOST_FILE = 64 << 20
MOST_COMPLAINT = 2000
# An interpreter may need these to find its own libraries; nothing else of the environment reaches a worker.
KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")


class Worker:
    """One worker process. `starting` until it says that it is ready, then `idle` unless it holds an answer."""

    def __init__(self, task: bytes, memory: int, seconds: float) -> None:
        """Starts the process (a clean exec, no fork of our threads) and sends it the pickled task."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        below, self._lifeline = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(WORKER), str(theirs.fileno()), str(below)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            pass_fds=(theirs.fileno(), below),
            start_new_session=True,
        )
        theirs.close()
        os.close(below)
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._number: int | None = None
        self.starting, self.ended, self.dead = True, False, False
        self.deadline = time.monotonic() + seconds
        self._put(json.dumps({"path": sys.path, "memory": memory, "file": MOST_FILE}).encode())
        self._put(task)

    @property
    def idle(self) -> bool:
        """Whether an answer may be given to it."""
        return not self.starting and self._number is None and not self.dead

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return not self.dead and self._process.poll() is None

    @property
    def unsent(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._outgoing)

    def fileno(self) -> int:
        """Returns the descriptor to wait on."""
        return self._channel.fileno()

    def welcome(self) -> None:
        """Notes that the worker is ready."""
        self.starting = False

    def ask(self, number: int, request: bytes, *, seconds: float) -> None:
        """Gives it answer `number` to judge, from now on within `seconds`."""
        self._number, self.deadline = number, time.monotonic() + seconds
        self._put(request)

    def release(self) -> int:
        """Returns the number of the answer it held, which it holds no longer."""
        assert self._number is not None
        number, self._number = self._number, None
        return number

    def write(self) -> None:
        """Writes as much as the channel takes now."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing[: 1 << 20])]

    def read(self) -> list[Any] | None:
        """Returns the next whole message, or None; at the end of the stream, or of all sense, `ended` is set."""
        with contextlib.suppress(BlockingIOError):
            try:
                part = self._channel.recv(1 << 16)
            except ConnectionError:
                part = b""
            self.ended = self.ended or not part
            self._incoming += part
        size = int.from_bytes(self._incoming[:LENGTH], "big")
        if len(self._incoming) < LENGTH + min(size, MOST_REPLY):
            return None
        message, self._incoming = self._incoming[LENGTH : LENGTH + size], self._incoming[LENGTH + size :]
        return self._parsed(bytes(message))

    def kill(self) -> str:
        """Kills the process and all of its group, and returns how it had ended."""
        if not self.dead:
            self.dead = True
            code = self._reap()
            self._channel.close()
            os.close(self._lifeline)
            self._how = _ending(code)
        return self._how

    def complaint(self) -> str:
        """Returns the last lines the worker wrote to its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        self._errors.seek(max(0, size - MOST_COMPLAINT))
        return self._errors.read().decode(errors="replace").strip()

    def _put(self, message: bytes) -> None:
        self._outgoing += len(message).to_bytes(LENGTH, "big") + message
        self.write()

    def _parsed(self, message: bytes) -> list[Any] | None:
        try:
            found = json.loads(message)
            if isinstance(found, list) and found and found[0] in ("ready", "failed", "verdict", "raised"):
                return found
        except (ValueError, RecursionError):
            pass
        self.ended = True
        return None

    def _reap(self) -> int | None:
        if self.ended:
            # Its end of the channel is closed: it is on its way out by itself, with a status worth telling.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        code = self._process.returncode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        return code


def _ending(code: int | None) -> str:
    if code is None:
        return "killed"
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return "out of memory" if code == 77 else f"exit status {code}"
