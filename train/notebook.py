"""How far a run is, in a notebook: a bar and a table of its latest metrics, updated in place."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ROWS = 8  # of the table, the latest
SECONDS = 0.3  # between two updates
COLUMNS = (
    "loss",
    "reward",
    "accuracy",
    "completions/mean_length",
    "entropy",
    "kl",
    "eval/accuracy",
    "eval/answer_loss",
)
Show = Callable[[int, str], None]
Record = Callable[[int, Mapping[str, float]], None]


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextlib.contextmanager
def table(description: str, total: int, done: int) -> Iterator[tuple[Show, Record]]:
    """(show, record) of a display that stays in the cell: how far it is, and a row per recorded step."""
    from IPython.display import display

    live = Live(description, total, done)
    handle = display(live.renderable(), display_id=True)

    def update() -> None:
        if live.due():
            handle.update(live.renderable())

    def show(now: int, caption: str) -> None:
        live.done, live.caption = now, caption
        update()

    def record(step: int, values: Mapping[str, float]) -> None:
        live.rows = [*(row for row in live.rows if row[0] != step), (step, live.of(step) | dict(values))][-ROWS:]
        update()

    try:
        yield show, record
    finally:
        live.ended = True
        handle.update(live.renderable())


class Live:
    """What is shown, and when it was shown last."""

    def __init__(self, description: str, total: int, done: int) -> None:
        """Nothing is recorded yet."""
        self.description, self.total, self.done, self.first = description, total, done, done
        self.caption, self.ended = "", False
        self.rows: list[tuple[int, dict[str, float]]] = []
        self._began = self._shown = time.monotonic()

    def of(self, step: int) -> dict[str, float]:
        """What is recorded of a step so far."""
        return next((values for number, values in self.rows if number == step), {})

    def due(self) -> bool:
        """Whether it is time to show what has changed."""
        if time.monotonic() - self._shown < SECONDS:
            return False
        self._shown = time.monotonic()
        return True

    def title(self) -> str:
        """Such as `grpo 120/400, 4.1/s, 1:08 left`; without the clock when it has ended."""
        rate = (self.done - self.first) / max(time.monotonic() - self._began, 1e-9)
        where = f"{self.description} {self.done}/{self.total}"
        if self.ended or not rate:
            return where
        left = round((self.total - self.done) / rate)
        return f"{where}, {rate:.3g}/s, {left // 60}:{left % 60:02d} left  {self.caption}".rstrip()

    def renderable(self) -> Any:
        """A rich table, which a notebook draws as HTML."""
        from rich.table import Table

        names = [name for name in COLUMNS if any(name in values for _, values in self.rows)]
        drawn = Table("step", *names, title=self.title(), title_justify="left")
        for step, values in self.rows:
            drawn.add_row(str(step), *(f"{values[name]:.4g}" if name in values else "" for name in names))
        return drawn
