"""What a run says while it works, what it counts, and how it hears a signal."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import jax

from infer.terminal import one_line, visible


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


class Interrupt:
    """Within its context SIGTERM asks for a stop after the current step; the old handler comes back afterwards."""

    def __enter__(self) -> Interrupt:
        """Installs the handler (signals reach the main thread only)."""
        self.requested = False
        # Of several hosts each tells the others of a signal by itself (`stops` in train/hosts.py).
        self._main = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._main:
            self._old = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the handler."""
        if self._main:
            signal.signal(signal.SIGTERM, self._old)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
