"""What came out of a sweep, as a table and a picture: python -m launch.report runs/x [--metrics=loss,eval/answer_loss]

Writes table.md, table.csv, plot.png and report.html, a page that needs no network, into that directory, from its run
directories alone. Runs whose configs differ in nothing but the seed are one row. A run's own directory gets its page.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.page import drawable, page
from launch.results import (
    AS_TRAINED,
    Cell,
    Group,
    View,
    best,
    choose_metrics,
    curve,
    grouped,
    over_seeds,
    read_results,
    spent,
)
from launch.sweep import Parser
from train.cli import guarded
from train.metrics import replace_text, smooth

WARM_UP = 0.1  # the share of a run that may lie outside of its panel: losses begin high


def in_figures(found: Cell | None) -> str:
    """`1.0691 ± 0.0021`: two figures of the deviation decide how many places are shown."""
    if found is None:
        return ""
    mean, deviation = found
    if not deviation or not math.isfinite(deviation):
        return f"{mean:.5g}"
    places = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def markdown(
    groups: Sequence[Group], metrics: Sequence[str], missing: Sequence[str] = (), view: View = AS_TRAINED
) -> str:
    """The table, mean ± standard deviation over seeds, the best mean of each column in bold."""
    lines = [["setting", "runs", *metrics], ["---"] * (len(metrics) + 2)]
    lines += [[group.label, str(len(group.runs))] for group in groups]
    for metric in metrics:
        cells = [over_seeds(group, metric, view) for group in groups]
        texts = [in_figures(found) for found in cells]
        if (row := best(cells, metric)) is not None:
            texts[row] = f"**{texts[row]}**"
        for line, text in zip(lines[2:], texts, strict=True):
            line.append(text)
    note = f"\nNot complete: {', '.join(missing)}\n" if missing else ""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + note


def comma_separated(groups: Sequence[Group], metrics: Sequence[str], view: View = AS_TRAINED) -> str:
    """The same as CSV, settings and deviations in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [part for metric in metrics for part in (metric, f"{metric} std")]
    writer.writerow(["setting", *groups[0].settings, "runs", *columns])
    for group in groups:
        cells = [value for metric in metrics for value in over_seeds(group, metric, view) or ("", "")]
        writer.writerow([group.label, *group.settings.values(), len(group.runs), *cells])
    return out.getvalue()


def band(group: Group, metric: str, over: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all runs of a group have, or what of `over` they had spent by then on average; mean and standard
    deviation of the metric there. Training curves are smoothed.
    """
    curves = [curve(run, metric) for run in group.runs]
    shared = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    rows = []
    for steps, values in curves:
        at = dict(zip(steps, values if metric.startswith("eval/") else smooth(values), strict=True))
        rows.append([at[step] for step in shared])
    table = np.asarray(rows, float)
    places = np.mean([[spent(run, over)[step] for step in shared] for run in group.runs], 0)
    return places, table.mean(0), table.std(0, ddof=1) if len(rows) > 1 else np.zeros(len(shared))


def plot(groups: Sequence[Group], metrics: Sequence[str], path: Path, over: str = "") -> bool:
    """One panel per metric that has curves, one colour per group, a band of one deviation; False if there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in metrics if any(len(curve(run, name)[0]) > 1 for group in groups for run in group.runs)]
    if not shown:
        return False
    figure = Figure(figsize=(4.8 * len(shown), 3.6 + 0.1 * len(groups)), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        draw(axes, groups, metric, over)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(groups), 4), frameon=False, fontsize=8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure).print_png(str(temporary))
    os.replace(temporary, path)
    return True


def draw(axes: Any, groups: Sequence[Group], metric: str, over: str = "") -> None:
    """One metric over steps or `over` another one's sum, every group's mean and band; the axis fits what comes after
    the warm-up.
    """
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    later: list[float] = []
    for number, group in enumerate(groups):
        steps, mean, deviation = band(group, metric, over)
        axes.plot(steps, mean, color=colours[number % len(colours)], linewidth=1.4, label=group.label)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=colours[number % len(colours)], alpha=0.2)
        after = (steps > WARM_UP * steps[-1]) & np.isfinite(mean + deviation) if len(steps) else []
        later += [*(mean - deviation)[after], *(mean + deviation)[after]]
    if later and min(later) < max(later):
        edge = 0.05 * (max(later) - min(later))
        axes.set_ylim(min(later) - edge, max(later) + edge)
    axes.set_title(metric, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(over or "step", fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def parser() -> Parser:
    """The flags of `python -m launch.report`."""
    flags = Parser("python -m launch.report", description="A table and a picture of the runs in a directory.")
    flags.add_argument("workdir", help="the --workdir of a sweep, or any folder of run directories")
    flags.add_argument("--metrics", default="", help="comma-separated: loss, eval/answer_loss, seconds, ...")
    flags.add_argument("--over", default="", help="a metric, such as num_samples, whose sum takes the place of steps")
    flags.add_argument("--at", type=float, help="read evaluations at this step, or this much of --over, not at the end")
    flags.add_argument("--median", action="store_true", help="training metrics: the median after the first tenth")
    return flags


def report(options: argparse.Namespace) -> None:
    """Writes the files and prints the table."""
    workdir = Path(options.workdir)
    runs, missing = read_results(workdir)
    groups, metrics = grouped(runs), choose_metrics(runs, options.metrics)
    choose_metrics(runs, options.over)
    view = View(options.over, options.at, options.median)
    table = markdown(groups, metrics, missing, view)
    replace_text(workdir / "table.md", table)
    replace_text(workdir / "table.csv", comma_separated(groups, metrics, view))
    drawn = plot(groups, metrics, workdir / "plot.png", options.over)
    bands = {name: [band(group, name, options.over) for group in groups] for name in drawable(groups)}
    replace_text(workdir / "report.html", page(workdir, groups, metrics, missing, bands, view))
    files = ["table.md", "table.csv", *(["plot.png"] if drawn else []), "report.html"]
    print(f"{table}\n{', '.join(files)} in {workdir}")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    return guarded(lambda: report(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
