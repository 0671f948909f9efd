"""A parent's end of one worker process: its channel without waiting, its deadline, its end."""

import contextlib
import json
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import UnionType
from typing import Any

WORKER = Path(__file__).resolve().with_name("worker.py")
LENGTH = 4
MOST_REPLY = 1 << 20
MOST_FILE = 64 << 20
MOST_COMPLAINT = 2000
# What a worker may say, while it starts and while it holds an answer: the types of what follows the first word.
STARTING: dict[str, tuple[type, ...]] = {"ready": (), "failed": (str,)}
JUDGING: dict[str, tuple[type | UnionType, ...]] = {"verdict": (float, str | None, str), "raised": (str,)}
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
        self._asked = 0
        self.starting, self.ended, self.dead, self.broken, self.fresh = True, False, False, False, True
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

    @property
    def silent(self) -> bool:
        """Whether it has said nothing but what it was asked, and has not ended."""
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self._incoming
        except ConnectionError:
            pass
        return False

    def ask(self, number: int, example: object, text: str, *, seconds: float) -> None:
        """Gives it answer `number` to judge, from now on within `seconds`.

        The request has a number that nobody can guess: no reply can be sent before it is asked for.
        """
        self._number, self.deadline = number, time.monotonic() + seconds
        self._asked = secrets.randbits(62)
        self._put(pickle.dumps((self._asked, example, text)))

    def release(self) -> int:
        """Returns the number of the answer it held, which it holds no longer."""
        assert self._number is not None
        number, self._number, self.fresh = self._number, None, False
        return number

    def write(self) -> None:
        """Writes as much as the channel takes now."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing[: 1 << 20])]

    def read(self) -> list[Any] | None:
        """Returns the next whole message without its request's number, or None.

        At the end of the stream `ended` is set; `broken` at anything but one whole answer to what was asked.
        """
        with contextlib.suppress(BlockingIOError):
            try:
                part = self._channel.recv(1 << 16)
            except ConnectionError:
                part = b""
            self.ended = self.ended or not part
            self._incoming += part
        if len(self._incoming) < LENGTH:
            return None
        size, message = int.from_bytes(self._incoming[:LENGTH], "big"), bytes(self._incoming[LENGTH:])
        if len(message) < size <= MOST_REPLY:
            return None
        self._incoming.clear()
        answer = self._parsed(message) if len(message) == size else None
        if answer is None:
            self.ended = self.broken = True
        return answer

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
        """Returns what a message says, or None when it is no answer to what was asked."""
        try:
            parsed = json.loads(message.decode())
        except (ValueError, RecursionError):
            return None
        if not isinstance(parsed, list) or not parsed or not isinstance(parsed[0], str):
            return None
        kind, *rest = parsed
        if not self.starting and (not rest or type(rest[0]) is not int or rest.pop(0) != self._asked):
            return None
        kinds = (STARTING if self.starting else JUDGING).get(kind)
        if kinds is None or len(rest) != len(kinds):
            return None
        # A bool is an int, but no float: numbers come as the worker's `float` writes them.
        return [kind, *rest] if all(map(isinstance, rest, kinds)) else None

    def _reap(self) -> int | None:
        if self.ended and not self.broken:
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
