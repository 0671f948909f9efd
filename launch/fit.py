"""Evaluations over compute as a sigmoid (analysis/scaling.py): run by run, as a table, a picture, and in words.

Each run is fitted twice: all its points, for A, B and Cmid; and those of its first part, whose curve is then read at
the run's end, for how far such a fit can be believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.scaling import Sigmoid, fit_sigmoid
from launch.results import Group, Result, curve, in_figures, in_markdown, mean, spent
from train.compute import FLOPS
from train.curves import save_figure

COLUMNS = ("points", "R0", "A", "B", "Cmid", "at the end", "predicted", "error")
FITS = ("sigmoid",)


@dataclasses.dataclass(frozen=True)
class Asked:
    """`metric`, a share, over what a run had `over` by then; points up to the share `skip` of its end are left out, and
    it is predicted from those up to `until`. `before`: R0 where runs were not evaluated before their first step.
    """

    metric: str = "eval/accuracy"
    over: str = FLOPS
    skip: float = 0.1
    until: float = 0.5
    before: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.skip < self.until < 1:
            raise ValueError(f"--skip={self.skip:g} and --until={self.until:g}: give shares with 0 <= skip < until < 1")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The points of one run, the sigmoid through those after the skipped ones and through those of the first part, and
    what cannot be said, in words.
    """

    name: str
    compute: np.ndarray
    shares: np.ndarray
    whole: Sigmoid | None
    early: Sigmoid | None
    refused: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """What is known of `COLUMNS`."""
        end = float(self.shares[-1])
        found = {"at the end": end}
        if self.whole:
            fit = self.whole
            found |= {
                "points": fit.points,
                "R0": fit.before,
                "A": fit.asymptote,
                "B": fit.steepness,
                "Cmid": fit.middle,
            }
        if self.early:
            predicted = float(self.early.at(self.compute[-1]))
            found |= {"predicted": predicted, "error": predicted - end}
        return found


def fitted(run: Result, asked: Asked) -> Fitted:
    """Both fits of a run; ValueError where it has no such points, or nothing tells where it began."""
    steps, values = curve(run, asked.metric)
    amounts = spent(run, asked.over)
    compute, shares = np.array([amounts[step] for step in steps]), np.array(values)
    if not compute.any():
        raise ValueError(
            f"{run.folder} has no {asked.metric} over {asked.over} in its metrics.jsonl: evaluate it now and then"
            " (eval.every), or name others with --metrics and --over"
        )
    starts = shares[compute == 0]
    if not len(starts) and asked.before is None:
        raise ValueError(
            f"{run.folder} was not evaluated before its first step, so R0 is not known: train with eval.at_start=True,"
            " or give it as --before"
        )
    before = float(starts[0]) if asked.before is None else asked.before
    refused = list[str]()

    def fit(until: float) -> Sigmoid | None:
        inside = (compute > asked.skip * compute[-1]) & (compute <= until * compute[-1])
        try:
            return fit_sigmoid(compute[inside], shares[inside], before)
        except ValueError as error:
            refused.append(f"{run.folder.name}, from {asked.skip:g} to {until:g} of the run: {error}")
            return None

    return Fitted(run.folder.name, compute, shares, fit(1.0), fit(asked.until), tuple(refused))


def fit_groups(groups: Sequence[Group], asked: Asked) -> list[list[Fitted]]:
    """The fits of all runs, group by group; ValueError, with all that was refused, where none has any."""
    found = [[fitted(run, asked) for run in group.runs] for group in groups]
    if not any(one.whole or one.early for fits in found for one in fits):
        raise ValueError("; ".join(text for fits in found for one in fits for text in one.refused))
    return found


def table(groups: Sequence[Group], fits: Sequence[Sequence[Fitted]], asked: Asked) -> str:
    """Markdown: a row for each run, and one over the seeds of each group; below, what was refused and what is flat."""
    lines = [["run", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for group, own in zip(groups, fits, strict=True):
        lines += [[in_markdown(one.name), *(_figure(one.figures().get(name)) for name in COLUMNS)] for one in own]
        if len(own) > 1:
            lines.append([f"{in_markdown(group.label)}, {len(own)} runs", *(_over_runs(own, name) for name in COLUMNS)])
    every = [one for own in fits for one in own]
    flat = [one.name for one in every if one.whole and one.whole.flat]
    notes = [
        f"R(C) = R0 + (A - R0) / (1 + (Cmid / C)^B), R = {asked.metric}, C = {asked.over}; the first {asked.skip:.0%}"
        f" of each run is left out, and its end is predicted from what comes before {asked.until:.0%} of it."
    ]
    notes += [f"Not fitted: {text}" for one in every for text in one.refused]
    notes += [f"Flat, A is not told from R0: {', '.join(flat)}"] if flat else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{in_markdown(n)}\n" for n in notes)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _over_runs(own: Sequence[Fitted], name: str) -> str:
    """Mean ± deviation (n - 1) over the runs that have a figure."""
    values = [found[name] for one in own if name in (found := one.figures())]
    if not values:
        return ""
    return in_figures((mean(values), float(np.std(values, ddof=1)) if len(values) > 1 else None))


def draw(groups: Sequence[Group], fits: Sequence[Sequence[Fitted]], asked: Asked, path: Path) -> None:
    """A panel for each group: points, the fit through all of them, and dashed that of the first part beyond it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(groups), 3.6), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group, own in zip(panels, groups, fits, strict=True):
        for number, one in enumerate(own):
            _draw_run(axes, one, asked, f"C{number}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:.0e}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(group.label, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(asked.over, fontsize=8)
        axes.set_ylabel(asked.metric, fontsize=8)
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=7)
    save_figure(figure, path)


def _draw_run(axes: Any, one: Fitted, asked: Asked, colour: str) -> None:
    after = one.compute > 0
    axes.plot(one.compute[after], one.shares[after], "o", markersize=3, color=colour, alpha=0.7, label=one.name)
    first, end = one.compute[after][0], one.compute[-1]
    for fit, start, style in ((one.whole, first, "-"), (one.early, asked.until * end, "--")):
        if fit:
            places = np.geomspace(start, end, 100)
            axes.plot(places, fit.at(places), style, color=colour, linewidth=1.2)
