"""How far a run is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from train.notebook import in_notebook, table

Values = Mapping[str, float]


def nothing(done: int, what: Any) -> None:
    """Shows nothing."""


class Progress:
    """How far something is; made by `progress`."""

    def __init__(
        self, done: int, show: Callable[[int, str], None] = nothing, record: Callable[[int, Values], None] = nothing
    ) -> None:
        """`show(done, caption)` is called at every change, `record(step, values)` with the metrics of a step."""
        self.done, self._show, self.record = done, show, record

    def advance(self, caption: str = "") -> None:
        """One more is done."""
        self.update(self.done + 1, caption)

    def update(self, done: int, caption: str = "") -> None:
        """So many are done."""
        self.done = done
        self._show(done, caption)


@contextlib.contextmanager
def progress(
    description: str, total: int, done: int = 0, *, every: float = 10.0, records: bool = False
) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, elsewhere a line every `every` seconds; may be nested.

    In a notebook what `records` metrics is a table of them that updates in place, and all else says nothing.
    """
    if jax.process_index() or (in_notebook() and not records):
        yield Progress(done)
        return
    if in_notebook():
        with table(description, total, done) as (show, record):
            yield Progress(done, show, record)
        return
    if not sys.stdout.isatty():
        yield Progress(done, plain_display(description, total, done, every))
        return
    with rich_display() as bar:
        row = bar.add_task(description, total=total, completed=done, caption="")
        yield Progress(done, lambda now, caption: bar.update(row, completed=now, caption=caption))


def rich_display() -> Any:
    """rich's live display: description, bar, count, rate, time left, caption; gone when it is done."""
    from rich import progress as rich

    columns = ("[bold]{task.description}", rich.BarColumn(), rich.MofNCompleteColumn())
    rate = rich.TaskProgressColumn("", "", show_speed=True)
    times = (rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn())
    return rich.Progress(*columns, rate, *times, rich.TextColumn("{task.fields[caption]}"), transient=True)


def plain_display(description: str, total: int, first: int, every: float) -> Callable[[int, str], None]:
    """show(done, caption) that prints a line when `every` seconds have passed since the last one.

    The rate is that of all but the first, in which programs are compiled.
    """
    printed = time.monotonic()
    begun: tuple[float, int] | None = None

    def show(done: int, caption: str) -> None:
        nonlocal printed, begun
        now = time.monotonic()
        if begun is None and done > first:
            begun = now, done
        if now - printed >= every:
            printed = now
            since, from_ = begun or (now, done)
            rate = (done - from_) / max(now - since, 1e-9)
            print(plain_line(description, done, total, rate, caption), flush=True)

    return show


def plain_line(description: str, done: int, total: int, rate: float, caption: str) -> str:
    """Such as `sft 120/400 (30 %), 4.1/s, 1:08 left  reward 0.5`."""
    left = round((total - done) / rate) if rate > 0 else None
    clock = "" if left is None else f", {left // 60}:{left % 60:02d} left"
    percent = 100 * done // max(total, 1)
    speed = f", {rate:.3g}/s" if rate > 0 else ""
    return f"{description} {done}/{total} ({percent} %){speed}{clock}  {caption}".rstrip()
