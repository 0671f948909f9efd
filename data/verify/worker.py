"""What one worker process of a `Pool` runs: it reads answers, judges them and says what it found.

Run by path, as `python -I worker.py CHANNEL LIFELINE`, never imported by a parent. The messages to a worker are
pickles, the messages from it JSON, so that a worker which hostile text has taken over cannot make its parent run code.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
LENGTH = 4
OUT_OF_MEMORY = 77
MOST_PARSED = 50_000  # characters of what was read from an answer: a whole message stays below the parent's limit
MOST_REASON = 500


def receive(channel: socket.socket) -> bytes | None:
    """Returns the next message, or None at the end of the stream."""
    head = _exactly(channel, LENGTH)
    return None if head is None else _exactly(channel, int.from_bytes(head, "big"))


def send(channel: socket.socket, *message: object) -> None:
    """Sends one message as JSON."""
    payload = json.dumps(message).encode()
    channel.sendall(len(payload).to_bytes(LENGTH, "big") + payload)


def die_with(lifeline: int) -> None:
    """Lets the kernel end this process group when the last writer of the pipe `lifeline` is gone.

    A signal of the kernel also ends a process that is stuck in one long operation, where no thread of it could run;
    and unlike the signal for a parent's death it does not mind which thread of the parent started us.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # not every system signals at pipes; there the end of the stream has to do
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    if poll.poll(0):
        os._exit(1)


def limit(kind: int, amount: int) -> None:
    """Lowers a resource limit for good, as far as the system knows it."""
    try:
        hard = resource.getrlimit(kind)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))
    except (OSError, ValueError):
        pass  # macOS has no limit on address space; the wall clock holds there too


def plant_package() -> None:
    """Puts the package `data` in place without running its `__init__`, which brings in the whole input pipeline.

    Only a task that asks the package itself for a name pays for it.
    """
    package = types.ModuleType("data")
    package.__path__ = [str(PACKAGE)]
    package.__spec__ = importlib.util.spec_from_file_location("data", PACKAGE / "__init__.py")

    def late(name: str) -> Any:
        del package.__getattr__
        assert package.__spec__ is not None and package.__spec__.loader is not None
        package.__spec__.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = late  # type: ignore[method-assign]
    sys.modules["data"] = package


def load(pickled: bytes) -> Any:
    """Returns the task, with whatever it imports late already imported."""
    task = pickle.loads(pickled)
    if hasattr(task, "warm_up"):
        task.warm_up()
    return task


def judge(task: Any, number: int, example: Any, text: str) -> tuple[object, ...]:
    """Returns the message that says what the task found in answer `number`."""
    try:
        return "verdict", number, *plain(task.verify(example, text))
    except MemoryError:
        # What is left of the heap is not worth trusting.
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        return "raised", number, f"{type(error).__name__}: {str(error)[:300]}"


def plain(verdict: Any) -> tuple[float, str | None, str]:
    """Returns score, parsed and reason; TypeError for what no message can hold."""
    score, parsed, reason = verdict.score, verdict.parsed, verdict.reason
    if isinstance(score, (str, bytes)) or not isinstance(parsed, (str, type(None))) or not isinstance(reason, str):
        raise TypeError(f"a verdict needs a number, a text or None, and a text, found {(score, parsed, reason)!r}")
    return float(score), parsed and parsed[:MOST_PARSED], reason[:MOST_REASON]


def main(channel: socket.socket, lifeline: int) -> None:
    """Serves until the stream ends."""
    die_with(lifeline)
    setup = json.loads(receive(channel) or b"{}")
    sys.path[:] = setup["path"]
    limit(resource.RLIMIT_AS, setup["memory"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, setup["file"])
    plant_package()
    try:
        task = load(receive(channel) or b"")
    except Exception as error:
        return send(channel, "failed", f"{type(error).__name__}: {str(error)[:1000]}")
    send(channel, "ready")
    while (request := receive(channel)) is not None:
        send(channel, *judge(task, *pickle.loads(request)))


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
