"""A run that gets a signal at a chosen point: python -m tests.train.killed SIGNAL PHASE COUNT DELAY [flags of train]

In the COUNT-th call of PHASE a clock starts, and DELAY seconds later comes SIGKILL, or SIGTERM, twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rl.rollout
import store.checkpoint
import train.loop
from train.__main__ import main

Hook = Callable[[], None]


def die(number: signal.Signals, phase: str, delay: float) -> None:
    """The end of this process, without a word to anyone in it; or two requests to end."""
    time.sleep(delay)
    os.write(2, f"{number.name} in {phase}\n".encode())
    os.kill(os.getpid(), number)
    time.sleep(0.02)
    os.kill(os.getpid(), number)


def counted(number: signal.Signals, phase: str, count: int, delay: float) -> Hook:
    """Called for the `count`-th time it starts the clock; when killed without a delay nothing comes after it."""
    calls = [0]

    def hook() -> None:
        calls[0] += 1
        if calls[0] == count and (delay or number == signal.SIGTERM):
            threading.Thread(target=die, args=(number, phase, delay), daemon=True).start()
        elif calls[0] == count:
            die(number, phase, 0.0)

    return hook


def before(owner: Any, name: str, hook: Hook) -> None:
    """`hook` runs whenever `owner.name` is called."""
    called = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        hook()
        return called(*arguments, **named)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, hook: Hook) -> None:
    """`hook` runs whenever `owner.name` has returned."""
    called = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        found = called(*arguments, **named)
        hook()
        return found

    setattr(owner, name, wrapped)


def arm(phase: str, hook: Hook) -> None:
    """Puts the hook where the phase is."""
    if phase == "rollout":
        before(rl.rollout.RolloutWorker, "__call__", hook)
    elif phase == "save":
        before(store.checkpoint.Checkpoints, "save", hook)
    elif phase == "written":  # the arrays are on the disk, their sums are not
        before(store.checkpoint, "write_sums", hook)
    elif phase == "summed":  # the sums, too, but the folder has not its name
        after(store.checkpoint, "write_sums", hook)
    elif phase == "plot":  # the last checkpoint is saved, the result is not
        before(train.loop, "plot_curves", hook)
    elif phase == "restore":
        before(store.checkpoint.Checkpoints, "restore", hook)
    elif phase in ("batch", "update"):
        build = train.loop.Trainer.__init__

        def built(self: Any, *arguments: Any) -> None:
            build(self, *arguments)
            before(self, "update", hook) if phase == "update" else before(self.algorithm.source, "next", hook)

        train.loop.Trainer.__init__ = built  # type: ignore[method-assign]
    else:
        raise ValueError(f"no phase {phase!r}")


if __name__ == "__main__":
    name, chosen, calls, seconds, *flags = sys.argv[1:]
    arm(chosen, counted(signal.Signals[name], chosen, int(calls), float(seconds)))
    sys.exit(main(["train", *flags]))
