"""Over-optimisation: what a reward model says and what is right, over how far RL has moved (2210.10760).

python -m analysis.studies.proxy "runs/over_optimisation/*"      -> proxy.json and proxy.png in the folder of the runs

Of every run of RL in the pipelines: gold (the exact answer), proxy (the reward model's score) and the KL to where it
began, in ten parts of its length. A run is over-optimised where the proxy still rises and gold has fallen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.pictures import save
from analysis.studies.budget_forcing import folders
from store.records import read_metrics
from train.cli import guarded

PARTS = 10
GOLD, PROXY, KL = "score", "rewards/model/mean", "kl"
Curve = dict[str, list[float]]


def curve_of(stage: Path) -> Curve:
    """Gold, proxy (where there is a reward model) and KL of a run of RL, as means over tenths of its steps."""
    records = [record for record in read_metrics(stage) if GOLD in record and KL in record]
    names = [name for name in (GOLD, PROXY, KL) if name in records[0]]
    parts = {name: np.array_split([record[name] for record in records], PARTS) for name in names}
    return {name: [float(np.mean(part)) for part in split] for name, split in parts.items()}


def summary(curve: Curve) -> dict[str, float]:
    """Gold at first, at its best and at the end; how far it fell; how much the proxy rose, in all and after that."""
    gold = curve[GOLD]
    best = int(np.argmax(gold))
    told = {"first": gold[0], "best": gold[best], "last": gold[-1], "fall": gold[best] - gold[-1], "kl": curve[KL][-1]}
    if PROXY in curve:
        told["proxy_rise"] = curve[PROXY][-1] - curve[PROXY][0]
        told["proxy_after_best"] = curve[PROXY][-1] - curve[PROXY][best]
    return told


def stages_of(folder: Path) -> dict[str, Curve]:
    """The curves of a pipeline's runs of RL, by stage."""
    stages = json.loads((folder / "config.json").read_text())["stages"]
    trained = [name for name in stages if (folder / name / "metrics.jsonl").is_file()]
    records = {name: read_metrics(folder / name) for name in trained}
    return {name: curve_of(folder / name) for name, found in records.items() if any(KL in record for record in found)}


def table(seeds: Sequence[Mapping[str, Curve]]) -> str:
    """Markdown: a run of RL to a row, means and deviations over seeds."""
    columns = ("first", "best", "last", "fall", "proxy_rise", "proxy_after_best", "kl")
    lines = [f"| rewarded | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for stage in seeds[0]:
        told = [summary(seed[stage]) for seed in seeds]
        cells = []
        for name in columns:
            values = [row[name] for row in told if name in row]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            cells.append(f"{np.mean(values):.2f} ± {spread:.2f}" if values else "")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(seeds: Sequence[Mapping[str, Curve]]) -> Any:
    """Gold and proxy over the root of the KL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.0), dpi=140, layout="constrained")
    for axes, name, title in zip(figure.subplots(1, 2), (GOLD, PROXY), ("right answers", "reward model"), strict=True):
        for number, stage in enumerate(s for s in seeds[0] if name in seeds[0][s]):
            for n, seed in enumerate(seeds):
                label = stage if n == 0 else None
                axes.plot(np.sqrt(seed[stage][KL]), seed[stage][name], color=f"C{number}", alpha=0.7, label=label)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("root of the KL to the start")
        axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.proxy`."""
    flags = argparse.ArgumentParser("python -m analysis.studies.proxy", description="Gold and proxy over the KL.")
    flags.add_argument("runs", nargs="+", help="pipelines of configs/ablations/over_optimisation.py, or patterns")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def study() -> None:
        runs = folders(options.runs)
        seeds = [stages_of(folder) for folder in runs]
        print(table(seeds))
        place = runs[0].parent
        (place / "proxy.json").write_text(json.dumps(seeds) + "\n")
        save(draw(seeds), place / "proxy.png")

    return guarded(study)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
