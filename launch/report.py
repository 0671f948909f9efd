"""What came out of a sweep, as a table and a picture: python -m launch.report runs/x [--metrics=loss,eval/answer_loss]

Writes table.md, table.csv, plot.png and report.html, a page that needs no network, into that directory, from its run
directories alone. Runs whose configs differ in nothing but the seed are one row. A run's own directory gets its page.
--fit=sigmoid adds fit.md and fit.png: where accuracy over compute levels off (launch/fit.py).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import fit
from launch.directions import NOTE
from launch.page import drawable, page
from launch.results import (
    AS_TRAINED,
    Group,
    View,
    best_rows,
    choose_metrics,
    curve,
    grouped,
    in_figures,
    in_markdown,
    notes,
    over_seeds,
    read_results,
    spent,
)
from launch.sweep import Parser
from store.objects import place
from store.records import replace_text
from store.terminal import one_line, visible
from train.cli import guarded
from train.curves import save_figure, smooth

WARM_UP = 0.1  # the share of a run that may lie outside of its panel: losses begin high


def markdown(
    groups: Sequence[Group], metrics: Sequence[str], missing: Sequence[str] = (), view: View = AS_TRAINED
) -> str:
    """The table, mean ± standard deviation over seeds, in bold the best mean of each column and what is no worse."""
    lines = [["setting", "runs", *map(in_markdown, metrics)], ["---"] * (len(metrics) + 2)]
    lines += [[in_markdown(group.label), str(len(group.runs))] for group in groups]
    marked = False
    for metric in metrics:
        texts = [in_figures(over_seeds(group, metric, view)) for group in groups]
        for row in best_rows(groups, metric, view):
            texts[row], marked = f"**{texts[row]}**", True
        for line, text in zip(lines[2:], texts, strict=True):
            line.append(text)
    below = [*map(in_markdown, notes(groups, metrics, missing, view)), *([NOTE] if marked else [])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{note}\n" for note in below)


def comma_separated(groups: Sequence[Group], metrics: Sequence[str], view: View = AS_TRAINED) -> str:
    """The same as CSV, settings and deviations in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [part for metric in metrics for part in (metric, f"{metric} std")]
    rows: list[list[Any]] = [["setting", *groups[0].settings, "runs", *columns]]
    for group in groups:
        cells = [value for metric in metrics for value in over_seeds(group, metric, view) or ("", "")]
        rows.append([group.label, *group.settings.values(), len(group.runs), *cells])
    writer.writerows([in_spreadsheet(value) for value in row] for row in rows)
    return out.getvalue()


def in_spreadsheet(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers stay what they are, negative ones, too."""
    if value is None or isinstance(value, int | float):
        return value
    text = one_line(str(value))
    return f"'{text}" if text.startswith(("=", "+", "-", "@", r"\t", r"\r")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def band(group: Group, metric: str, over: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all runs of a group with this metric have, or what of `over` they had spent by then on average; mean
    and standard deviation of the metric there. Training curves are smoothed.
    """
    runs = [run for run in group.runs if curve(run, metric)[0]]
    curves = [curve(run, metric) for run in runs]
    shared = sorted(set.intersection(*(set(steps) for steps, _ in curves))) if runs else []
    if not shared:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    rows = []
    for steps, values in curves:
        at = dict(zip(steps, values if metric.startswith("eval/") else smooth(values), strict=True))
        rows.append([at[step] for step in shared])
    table = np.asarray(rows, float)
    places = np.mean([[spent(run, over)[step] for step in shared] for run in runs], 0)
    with np.errstate(invalid="ignore"):  # of what is not finite
        return places, table.mean(0), table.std(0, ddof=1) if len(rows) > 1 else np.zeros(len(shared))


def plot(groups: Sequence[Group], metrics: Sequence[str], path: Path, over: str = "") -> bool:
    """One panel per metric that has curves, one colour per group, a band of one deviation; False if there are none."""
    from matplotlib.figure import Figure

    shown = [name for name in metrics if any(len(curve(run, name)[0]) > 1 for group in groups for run in group.runs)]
    if not shown:
        return False
    figure = Figure(figsize=(4.8 * len(shown), 3.6 + 0.1 * len(groups)), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        lines = draw(axes, groups, metric, over)
    legend = figure.legend(
        lines,
        [str(number) for number in range(len(groups))],  # matplotlib leaves out names that begin with "_"
        loc="outside lower center",
        ncols=min(len(groups), 4),
        frameon=False,
        fontsize=8,
    )
    for text, group in zip(legend.get_texts(), groups, strict=True):
        text.set_text(short(group.label))
    save_figure(figure, path)
    return True


def short(label: str, most: int = 60) -> str:
    """A label that leaves room for the others."""
    label = one_line(label)
    return label if len(label) <= most else f"{label[: most - 3]}..."


def draw(axes: Any, groups: Sequence[Group], metric: str, over: str = "") -> list[Any]:
    """One metric over steps or `over` another one's sum, every group's mean and band; the axis fits what comes after
    the warm-up. Returns the lines of the groups.
    """
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    lines, later = [], list[float]()
    for number, group in enumerate(groups):
        steps, mean, deviation = band(group, metric, over)
        lines += axes.plot(steps, mean, color=colours[number % len(colours)], linewidth=1.4)
        axes.fill_between(steps, mean - deviation, mean + deviation, color=colours[number % len(colours)], alpha=0.2)
        after = (steps > WARM_UP * max(steps, default=0)) & np.isfinite(mean + deviation)
        later += [*(mean - deviation)[after], *(mean + deviation)[after]]
    if later and min(later) < max(later):
        edge = 0.05 * (max(later) - min(later))
        axes.set_ylim(min(later) - edge, max(later) + edge)
    axes.set_title(short(metric), loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(short(over) or "step", fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return lines


def parser() -> Parser:
    """The flags of `python -m launch.report`."""
    flags = Parser("python -m launch.report", description="A table and a picture of the runs in a directory.")
    flags.add_argument("workdir", help="the --workdir of a sweep, or any folder of run directories")
    flags.add_argument("--metrics", default="", help="comma-separated: reward, eval/answer_loss, seconds, ...")
    flags.add_argument(
        "--over", default="", help="what takes the place of steps: compute/flops, or the sum of num_samples, ..."
    )
    flags.add_argument("--at", type=float, help="read evaluations at this step, or this much of --over, not at the end")
    flags.add_argument("--median", action="store_true", help="training metrics: the median after the first tenth")
    flags.add_argument("--fit", default="", choices=("", *fit.FITS), help="of --metrics (eval/accuracy) over compute")
    flags.add_argument("--skip", type=float, default=0.1, help="--fit leaves out this share of a run's beginning")
    flags.add_argument("--until", type=float, default=0.5, help="--fit predicts the end from this share of a run")
    flags.add_argument("--before", type=float, help="--fit: the share before training, where it was not measured")
    return flags


def asked_fit(options: argparse.Namespace, metrics: Sequence[str]) -> fit.Asked:
    """What --fit is to fit; ValueError for several metrics."""
    named = metrics if options.metrics else [fit.Asked.metric]
    if len(named) > 1:
        raise ValueError(f"--fit={options.fit} is of one metric, found --metrics={options.metrics}")
    return fit.Asked(named[0], options.over or fit.Asked.over, options.skip, options.until, options.before)


def write_fit(workdir: Path, groups: Sequence[Group], asked: fit.Asked) -> str:
    """Writes fit.md and fit.png, and returns the table."""
    fits = fit.fit_groups(groups, asked)
    told = fit.table(groups, fits, asked)
    replace_text(workdir / "fit.md", told)
    fit.draw(groups, fits, asked, workdir / "fit.png")
    return told


def report(options: argparse.Namespace) -> None:
    """Writes the files and prints the table."""
    workdir = place(options.workdir)
    runs, missing = read_results(workdir)
    groups, metrics = grouped(runs), choose_metrics(runs, options.metrics)
    choose_metrics(runs, options.over)
    view = View(options.over, options.at, options.median)
    table = markdown(groups, metrics, missing, view)
    fitted = write_fit(workdir, groups, asked_fit(options, metrics)) if options.fit else ""
    replace_text(workdir / "table.md", table)
    replace_text(workdir / "table.csv", comma_separated(groups, metrics, view))
    drawn = plot(groups, metrics, workdir / "plot.png", options.over)
    bands = {name: [band(group, name, options.over) for group in groups] for name in drawable(groups)}
    replace_text(workdir / "report.html", page(workdir, groups, metrics, missing, bands, view))
    files = ["table.md", "table.csv", *(["plot.png"] if drawn else []), "report.html"]
    files += ["fit.md", "fit.png"] if fitted else []
    print(visible("\n".join(filter(None, (table, fitted, f"{', '.join(files)} in {workdir}")))))


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    return guarded(lambda: report(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
