"""Curves of a run or of its stages, as one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store.records import Record, is_scalar, read_metrics

# (title, names of the metrics it shows, drawn in this order where a run has them)
PANELS = (
    ("reward", ("reward",)),
    ("accuracy", ("accuracy", "eval/accuracy")),
    ("length in tokens", ("completions/mean_length", "mean_tokens", "eval/mean_tokens")),
    ("entropy", ("entropy",)),
    ("KL to the reference", ("kl",)),
    ("loss", ("loss", "answer_loss", "eval/answer_loss")),
)
COLOURS = {False: "#4269a5", True: "#c8553d"}  # what training saw, and what evaluation found
Stage = tuple[str, int, list[Record]]


def plot_curves(workdirs: str | Path | Sequence[str | Path], path: str | Path) -> bool:
    """Draw reward, accuracy, length, entropy, KL and loss over steps into one picture, where a run has them.

    Several run directories are stages, put one after the other and named. Returns False, and draws nothing,
    when there is no curve to draw.
    """
    folders = [workdirs] if isinstance(workdirs, str | Path) else list(workdirs)
    stages = concatenate([Path(folder) for folder in folders])
    panels = [(title, drawn) for title, names in PANELS if (drawn := present(stages, names))]
    if panels:
        draw(stages, panels, Path(path))
    return bool(panels)


def concatenate(folders: Sequence[Path]) -> list[Stage]:
    """(name, steps before it, records) of every stage that wrote metrics."""
    stages, offset = list[Stage](), 0
    for folder in folders:
        if records := read_metrics(folder):
            stages.append((folder.name, offset, records))
            offset += max(record["step"] for record in records)
    return stages


def series(stage: Stage, name: str) -> tuple[list[int], list[float]]:
    """Steps, counted from the first stage's start, and finite values of one metric of a stage."""
    _, offset, records = stage
    points = [(offset + r["step"], r[name]) for r in records if is_scalar(r.get(name)) and math.isfinite(r[name])]
    return [step for step, _ in points], [value for _, value in points]


def present(stages: Sequence[Stage], names: Sequence[str]) -> list[str]:
    """The metrics among `names` that some stage has."""
    return [name for name in names if any(series(stage, name)[0] for stage in stages)]


def smooth(values: Sequence[float], share: float = 0.1) -> np.ndarray:
    """Running mean of what is finite in `share` of the series around each value; symmetric, so no curve lags."""
    reach = np.minimum(np.arange(len(values)), np.arange(len(values))[::-1])
    reach = np.minimum(reach, int(len(values) * share / 2))
    fine, middle = np.isfinite(values), np.arange(len(values))
    sums = np.cumsum(np.concatenate([[0.0], np.where(fine, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], fine]))
    within, found = (x[middle + reach + 1] - x[middle - reach] for x in (sums, counts))
    return np.where(found > 0, within / np.maximum(found, 1), np.nan)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG in one piece. Names of runs, folders and metrics are text, whatever `$` they hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(temporary := path.with_name(f".{path.name}.{os.getpid()}")))
    os.replace(temporary, path)


def draw(stages: Sequence[Stage], panels: Sequence[tuple[str, list[str]]], path: Path) -> None:
    """Small multiples, three in a row, written as one PNG."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=140, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, names) in zip(grid, panels, strict=False):
        draw_panel(axes, stages, title, names)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def draw_panel(axes: Any, stages: Sequence[Stage], title: str, names: Sequence[str]) -> None:
    """One metric over steps: noisy training values faint under their running mean, evaluations as points."""
    shown = [stage for stage in stages if present([stage], names)]
    for stage in shown:
        for name in names:
            draw_series(axes, *series(stage, name), evaluated=name.startswith("eval/"))
    for name, offset, _ in shown if len(stages) > 1 else ():
        axes.axvline(offset, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(name, (offset, 1), (3, -2), **place, va="top", fontsize=8, color="0.4")
    if len({name.startswith("eval/") for name in names}) > 1:
        axes.legend(handles=key_lines(), fontsize=7, frameon=False, loc="best")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def key_lines() -> list[Any]:
    """What the two colours mean, for a panel that has both."""
    from matplotlib.lines import Line2D

    words = {False: "training", True: "evaluation"}
    return [Line2D([], [], color=colour, label=words[evaluated]) for evaluated, colour in COLOURS.items()]


def draw_series(axes: Any, steps: Sequence[int], values: Sequence[float], evaluated: bool) -> None:
    """One stage of one metric."""
    colour = COLOURS[evaluated]
    if evaluated:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3.5)
    elif steps:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.6)
