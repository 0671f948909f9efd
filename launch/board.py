"""What is seen of a sweep while it runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.runs import DONE, WAITING, Run
from store.run_directory import read_result
from store.terminal import one_line


class Board:
    """A `Report`: a live table on a terminal, elsewhere a line whenever a run changes its state."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Shows nothing yet; used as a context."""
        self._states = {run.name: (DONE if run.complete else WAITING, "") for run in runs}
        self._live = Live(get_renderable=self._table, refresh_per_second=2) if sys.stdout.isatty() else None

    def __enter__(self) -> Board:
        """Begins to show."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table standing."""
        if self._live:
            self._live.stop()

    def __call__(self, run: Run, state: str) -> None:
        """A run is in this state."""
        changed = self._states[run.name][0] != state
        self._states[run.name] = state, detail(run, state)
        if changed and not self._live:
            line = f"[{self._summary()}] {one_line(run.name)}: {state}  {self._states[run.name][1]}"
            print(line.rstrip(), flush=True)

    def _summary(self) -> str:
        counts = Counter(state for state, _ in self._states.values())
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def _table(self) -> Table:
        table = Table("run", "state", "", title=self._summary())
        for name, (state, words) in self._states.items():
            if state not in (WAITING, DONE):
                table.add_row(Text(one_line(name)), state, Text(words))
        return table


def detail(run: Run, state: str) -> str:
    """A word on a run, fit for a terminal: its figures once it is done, until then the last line it printed."""
    if state == DONE:
        try:
            stages = read_result(run.folder, {"stages": list})["stages"]
        except ValueError as error:  # one that is broken stops no other
            return one_line(str(error))
        figures = stages[-1].items() if stages else ()
        return ", ".join(f"{key} {value:.4g}" for key, value in figures if isinstance(value, int | float))
    return one_line(last_line(run.log)) if state != WAITING else ""


def last_line(path: Path, reach: int = 4096) -> str:
    """The last line with something in it, looked for in the last `reach` bytes; nothing without a file."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - reach))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
