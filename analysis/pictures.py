"""One way to draw a table of numbers with words in its cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from store.terminal import visible
from train.curves import save_figure


class Labels(NamedTuple):
    """What stands beside a heat map: names of its rows and columns (none: no names), titles, and the colours' range."""

    rows: Sequence[str]
    columns: Sequence[str] = ()
    title: str = ""
    below: str = ""
    bar: str = ""
    low: float = 0.0
    high: float = 1.0


def heat_map(values: np.ndarray, texts: Sequence[Sequence[str]], labels: Labels) -> Any:
    """A matplotlib figure: values [R, C], NaN where a cell is empty, as colours with a text in every cell."""
    from matplotlib.figure import Figure

    rows, columns = values.shape
    size = (2.6 + 0.42 * columns * (1 + 0.1 * max((len(t) for row in texts for t in row), default=1)), 1 + 0.36 * rows)
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=labels.low, vmax=labels.high)
    bright = labels.low + 0.6 * (labels.high - labels.low)
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            colour = "white" if values[y, x] < bright else "black"
            axes.text(x, y, shown(text), ha="center", va="center", color=colour, family="monospace", fontsize=8)
    axes.set_yticks(range(rows), list(labels.rows), family="monospace", fontsize=8)
    axes.set_xticks(range(len(labels.columns)), list(labels.columns), family="monospace", fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(labels.below)
    axes.set_title(labels.title, loc="left", fontsize=9)
    figure.colorbar(image, ax=axes, label=labels.bar)
    return figure


def shown(text: str) -> str:
    """A token as it can be printed in a cell."""
    return (
        text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").replace(" ", "\N{MIDDLE DOT}") or "\N{BULLET}"
    )


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG and says where."""
    save_figure(figure, path)
    print(visible(str(path)))
