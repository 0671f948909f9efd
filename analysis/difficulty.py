"""Accuracy against the difficulty of what is asked, a line for each model over its seeds, and what training cost.

python -m analysis.difficulty "runs/depth_by_example/*" --by=steps --trained=6        -> difficulty.png
"""

from __future__ import annotations

import argparse
import glob
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.pictures import save
from store.records import read_metrics
from store.terminal import visible
from train.cli import guarded

SEED = re.compile(r",?seed=\d+")
FLOPS = "compute/flops"


class Measured(NamedTuple):
    """What one run reached: accuracy by the value of a field, and the FLOPs of its training."""

    accuracy: Mapping[int, float]
    flops: float


def measured(folder: Path, by: str) -> Measured:
    """The last accuracies of a run by the values of `eval.by`, numbers; ValueError where there are none."""
    named, records = re.compile(rf"eval/accuracy_{re.escape(by)}_(\d+)"), read_metrics(folder)
    found = {int(match[1]): float(value) for r in records for k, value in r.items() if (match := named.fullmatch(k))}
    if not found:
        raise ValueError(f"{folder} holds no accuracy by {by!r}: evaluate with --config.eval.by={by}")
    return Measured(dict(sorted(found.items())), max((float(r[FLOPS]) for r in records if FLOPS in r), default=0.0))


def by_model(folders: Sequence[Path], by: str) -> dict[str, list[Measured]]:
    """The runs of each model: folders whose names differ in nothing but the seed."""
    found: dict[str, list[Measured]] = {}
    for folder in sorted(folders):
        found.setdefault(SEED.sub("", folder.name) or folder.parent.name, []).append(measured(folder, by))
    return found


def table(models: Mapping[str, Sequence[Measured]]) -> str:
    """Markdown: mean accuracy and its range over seeds by value, and the FLOPs of training."""
    values = sorted(set.intersection(*(set(run.accuracy) for runs in models.values() for run in runs)))
    lines = [f"| model | {' | '.join(map(str, values))} | FLOPs | seeds |", "|---" * (len(values) + 3) + "|"]
    for name, runs in models.items():
        cells = [in_words([run.accuracy[value] for run in runs]) for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean([run.flops for run in runs]):.1e} | {len(runs)} |")
    return "\n".join(lines)


def in_words(values: Sequence[float]) -> str:
    """The mean, and the range where seeds differ by more than the second digit."""
    low, high = min(values), max(values)
    return f"{np.mean(values):.2f}" + (f" ({low:.2f}-{high:.2f})" if high - low >= 0.01 else "")


def draw(models: Mapping[str, Sequence[Measured]], by: str, trained: int = 0) -> Any:
    """A matplotlib figure: accuracy against the values of the field, the mean and the range over seeds; what lies
    beyond `trained` is shaded.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), dpi=140, layout="constrained")
    axes = figure.subplots()
    for name, runs in models.items():
        values = sorted(set.intersection(*(set(run.accuracy) for run in runs)))
        rows = np.array([[run.accuracy[value] for value in values] for run in runs])
        (line,) = axes.plot(values, rows.mean(0), marker="o", markersize=4, label=name)
        axes.fill_between(values, rows.min(0), rows.max(0), color=line.get_color(), alpha=0.15)
    if trained:
        axes.axvspan(trained + 0.5, axes.get_xlim()[1], color="0.93", zorder=0)
        axes.text(trained + 0.6, 1.03, "beyond training", fontsize=8, color="0.4")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(-0.02, 1.1)
    axes.set_xlabel(by)
    axes.set_title("accuracy", loc="left", fontsize=10, fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.difficulty`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.difficulty", description="Accuracy against the difficulty of what is asked."
    )
    flags.add_argument("runs", nargs="+", help="run directories, or patterns of them")
    flags.add_argument("--by", default="steps", help="the field of eval.by, whose values are numbers")
    flags.add_argument("--trained", type=int, default=0, help="the largest value that was trained on")
    flags.add_argument("--output", default="difficulty.png", help="the PNG")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault."""
    options = parser().parse_args(arguments)

    def told() -> None:
        found = [Path(path) for pattern in options.runs for path in sorted(glob.glob(pattern)) or [pattern]]
        models = by_model([path for path in found if path.is_dir() or len(found) == 1], options.by)
        print(visible(table(models)))
        save(draw(models, options.by, options.trained), Path(options.output))

    return guarded(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
