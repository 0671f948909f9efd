"""A pipeline's graph as a picture: a box for every stage, an arrow for everything it reads, accuracy beside both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.curves import save_figure
from train.graph import Stage

TRAINED, MADE = "#dfe7f3", "#f4e6dc"  # boxes of stages that train, and of those that do not
FIGURES = (("accuracy", "accuracy {:.1%}"), ("kept", "kept {:.0f}"), ("pairs", "{:.0f} pairs"))


def plot_graph(stages: Sequence[Stage], rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws the stages of a pipeline from left to right; `rows` holds what was measured of each."""
    from matplotlib.figure import Figure

    places = layout(stages)
    wide, high = max(x for x, _ in places.values()) + 1, max(y for _, y in places.values()) + 1
    figure = Figure(figsize=(2.3 * wide, 1.3 * high + 0.6), dpi=140)
    axes = figure.subplots()
    for stage in stages:
        for start, (label, dashed) in arrows(stage, rows).items():
            _arrow(axes, places[start], places[stage.name], label, dashed)
    for stage in stages:
        x, y = places[stage.name]
        said = "\n".join(filter(None, (stage.name, stage.config.algorithm, figures(rows.get(stage.name, {})))))
        colour = TRAINED if (stage.folder / "checkpoints").is_dir() else MADE
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#5b6b80"}
        axes.text(x, -y, said, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.set_xlim(-0.6, wide - 0.4)
    axes.set_ylim(-high + 0.4, 0.9)
    axes.axis("off")
    save_figure(figure, path)


def layout(stages: Sequence[Stage]) -> dict[str, tuple[int, int]]:
    """(column, row) of each stage: one column after the last that it needs, the first free row there."""
    places: dict[str, tuple[int, int]] = {}
    for stage in stages:
        column = max((places[name][0] + 1 for name in stage.needs), default=0)
        taken = {row for x, row in places.values() if x == column}
        places[stage.name] = column, next(row for row in range(len(stages)) if row not in taken)
    return places


def figures(row: Mapping[str, Any]) -> str:
    """What is said of a stage: its accuracy, or how much it made."""
    return next((form.format(float(row[name])) for name, form in FIGURES if name in row), "")


def arrows(stage: Stage, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, bool]]:
    """What comes from which other stage: a model with its accuracy (a whole line), files and other models (dashed)."""
    found: dict[str, tuple[str, bool]] = {}
    for setting, reference in stage.edges.items():
        start, _, file = reference.partition("/")
        if setting == "init_from" and stage.config.algorithm in ("score", "pairs"):
            continue  # of whose model these take the tokenizer alone
        starts = setting == "init_from"
        label = file or (figures(rows.get(start, {})) if starts else setting.rpartition(".")[2].partition("[")[0])
        before, dashed = found.get(start, ("", True))
        both = label if label in before or not before else f"{before}, {label}"
        found[start] = both, dashed and not starts
    return found


def _arrow(axes: Any, start: tuple[int, int], end: tuple[int, int], label: str, dashed: bool) -> None:
    bend = 0.0 if end[0] - start[0] == 1 else -0.18  # over the boxes between
    style = {
        "arrowstyle": "-|>",
        "color": "#5b6b80",
        "linestyle": "--" if dashed else "-",
        "shrinkA": 30,
        "shrinkB": 34,
        "connectionstyle": f"arc3,rad={bend}",
    }
    axes.annotate("", (end[0], -end[1]), (start[0], -start[1]), arrowprops=style, zorder=1)
    above = 0.06 - bend * (end[0] - start[0]) / 2
    middle = ((start[0] + end[0]) / 2, -(start[1] + end[1]) / 2 + above)
    axes.text(*middle, label, ha="center", va="bottom", fontsize=6.5, color="#5b6b80", zorder=2)
