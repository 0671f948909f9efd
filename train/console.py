"""What a run says while it works, what it counts, and how it hears a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import jax

from store.terminal import one_line, visible

HEARD = (signal.SIGTERM, signal.SIGINT)


class Console:
    """Plain lines with the run's name in front."""

    def __init__(self, name: str) -> None:
        """`name` leads every line."""
        self._name = name
        self._began = 0.0

    def say(self, text: str) -> None:
        """Prints one line at once; of several hosts the first alone does."""
        if jax.process_index() == 0:
            print(f"[{one_line(self._name)}] {visible(text)}", flush=True)

    def compiling(self, what: str) -> None:
        """Says that a compilation is on its way."""
        self._began = time.perf_counter()
        self.say(f"compiling {what} ...")

    def compiled(self) -> None:
        """Says how long it took."""
        self.say(f"... ready after {time.perf_counter() - self._began:.1f} s")


class CompileCounter:
    """Counts XLA compilations of this process from its making on."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        """Starts listening."""
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self.EVENT:
            self.count, self.seconds = self.count + 1, self.seconds + duration_secs


class Interrupted(BaseException):
    """What an evaluation ends by that a signal need not wait for."""


class Interrupt:
    """Within its context SIGTERM and Ctrl-C ask for a stop after the current step; a second Ctrl-C stops at once.

    The old handlers come back afterwards.
    """

    def __init__(
        self, say: Callable[[str], None] = lambda text: None, signals: Sequence[signal.Signals] = HEARD
    ) -> None:
        """`say` is told of the first Ctrl-C."""
        self._say, self._signals = say, signals
        self._raises = False

    def __enter__(self) -> Interrupt:
        """Installs the handlers (signals reach the main thread only)."""
        self.requested = False
        # Of several hosts each tells the others of a signal by itself (`stops` in train/hosts.py).
        main = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        self._old = {number: signal.signal(number, self._ask) for number in self._signals if main and _heard(number)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What runs inside ends by `Interrupted` at the first signal, or at once when there was one."""
        self._raises = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._raises = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self._say("interrupted: saving after this step; Ctrl-C again stops at once, without saving")
        self.requested = True
        if self._raises:
            raise Interrupted


def _heard(number: int) -> bool:
    """Whether a signal is not ignored: a shell lets what it starts in the background ignore Ctrl-C."""
    return signal.getsignal(number) is not signal.SIG_IGN
