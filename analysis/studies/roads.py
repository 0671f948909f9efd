"""Stages of a pipeline side by side, over the seeds of a sweep: what each came to, what it cost, which claims hold.

python -m analysis.studies.roads "runs/distill_r1_seeds/*" --claim="distilled.accuracy > own_rl.accuracy" \
    --majority=student          -> roads.json and roads.png in the folder of the runs

FLOPs are those that each stage has counted (compute/flops of its metrics.jsonl, train/compute.py). `--majority` adds
the road that trains nothing: a stage's model answers by the majority of so many samples (`--votes`). A claim holds if
it does in the mean and in every seed.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jax

from analysis.pictures import save
from analysis.studies.budget_forcing import folders
from infer.asking import TaskSpec
from infer.evaluate import evaluate_strategy, questions
from infer.load import load_run
from infer.sampling import SamplingParams
from infer.strategies import build_strategy
from model.compute import flops
from model.reports import Work
from store.records import Record, read_metrics
from store.run_directory import read_result
from train.cli import guarded
from train.compute import FLOPS

Figures = dict[str, float]
CLAIM = re.compile(r"\s*(\w+)\.([\w/]+)\s*([<>])\s*(\w+)\.([\w/]+)\s*(?:([+-])\s*([\d.]+))?\s*")
COMPARED = {">": operator.gt, "<": operator.lt}
FORMED = 0.9  # of answers in the form asked for, from which on a run is said to have it


def figures_of(folder: Path) -> dict[str, Figures]:
    """What the stages of one pipeline came to, by stage: last evaluation, FLOPs, seconds, when the form was there."""
    found: dict[str, Figures] = {}
    for row in read_result(folder)["stages"]:
        stage = folder / row["name"]
        figures = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        if (stage / "metrics.jsonl").is_file():
            records = read_metrics(stage)
            figures |= {
                name.removeprefix("eval/"): float(value)
                for record in records
                for name, value in record.items()
                if name.startswith("eval/") and isinstance(value, int | float)
            }
            counted = [record[FLOPS] for record in records if FLOPS in record]
            figures |= ({"flops": counted[-1]} if counted else {}) | formed(records)
        found[row["name"]] = figures
    return found


def formed(records: Sequence[Record]) -> Figures:
    """The first update at which FORMED of the samples had the form that `format` rewards; nothing where none had."""
    steps = (r["step"] for r in records if float(r.get("rewards/format/mean", 0)) >= FORMED)
    return {"formed_at": float(step)} if (step := next(steps, None)) is not None else {}


def majorities(folder: Path, stage: str, votes: Sequence[int], examples: int) -> dict[str, Figures]:
    """What a stage's model comes to by the majority of so many samples, and the FLOPs of all its answers."""
    loaded = load_run(folder / stage)
    task, data = loaded.task(), loaded.config["data"]
    spec = TaskSpec(task, loaded.tokenizer, template=data["template"], system=data["system"] or None)
    tokens, found = loaded.config["eval"]["max_new_tokens"], dict[str, Figures]()
    asked, _ = questions(task, loaded.tokenizer, "test", examples, room=10**6, drops=False, say=print)
    for n in votes:
        strategy = build_strategy("majority", spec, SamplingParams(tokens, n=n))
        metrics = evaluate_strategy(strategy, loaded.model, loaded.params, asked, jax.random.key(n)).metrics
        read = metrics["tokens_per_question"] * len(asked)
        spent = flops(loaded.model, Work(read, read * loaded.model.config.recurrent.mean), trains=False)
        found[f"{stage}, majority of {n}"] = metrics | {"flops": float(spent)}
    return found


def verdict(claim: str, seeds: Sequence[Mapping[str, Figures]]) -> dict[str, Any]:
    """Whether a claim such as `a.accuracy > b.accuracy + .1` holds, in the mean and in each seed; ValueError for what
    is no claim, and for figures that there are not.
    """
    match = CLAIM.fullmatch(claim)
    if match is None:
        raise ValueError(f"--claim={claim!r} is no claim: write stage.figure > stage.figure [+ number]")
    left, name, sign, right, other, plus, amount = match.groups()
    shift = float(f"{plus}{amount}") if plus else 0.0
    for stage, figure in ((left, name), (right, other)):
        lacking = [n for n, seed in enumerate(seeds) if figure not in seed.get(stage, {})]
        if lacking:
            known = ", ".join(seeds[lacking[0]].get(stage, {})) or f"no stage {stage}; {', '.join(seeds[0])}"
            raise ValueError(f"--claim={claim!r}: {stage} has no {figure} ({known})")
    gaps = [seed[left][name] - seed[right][other] - shift for seed in seeds]
    holds = [bool(COMPARED[sign](gap, 0)) for gap in gaps]
    return {"claim": claim, "holds": all(holds) and bool(COMPARED[sign](fmean(gaps), 0)), "seeds": holds}


def table(seeds: Sequence[Mapping[str, Figures]], metrics: Sequence[str]) -> str:
    """Markdown: means and deviations over seeds, a stage to a row."""
    lines = [f"| stage | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for stage in seeds[0]:
        values = [[seed[stage][name] for seed in seeds if name in seed.get(stage, {})] for name in metrics]
        lines.append(f"| {stage} | {' | '.join(cell(value) for value in values)} |")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """Mean ± deviation in few figures, "" without values."""
    if not values:
        return ""
    mean, deviation = fmean(values), stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.2e}" if mean > 1e5 else f"{mean:.3g} ± {deviation:.2g}"


def draw(seeds: Sequence[Mapping[str, Figures]], shown: Sequence[str]) -> Any:
    """Accuracy against FLOPs, a point for each stage and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=140, layout="constrained")
    axes = figure.subplots()
    for stage in shown:
        points = [(s[stage]["flops"], s[stage]["accuracy"]) for s in seeds if "flops" in s.get(stage, {})]
        if points:
            axes.plot(*zip(*points, strict=True), "o", alpha=0.7, label=stage)
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs spent beyond the base")
    axes.set_ylabel("accuracy")
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.roads`."""
    flags = argparse.ArgumentParser("python -m analysis.studies.roads", description="Stages side by side, over seeds.")
    flags.add_argument("runs", nargs="+", help="pipelines' directories that differ in their seed, or patterns")
    flags.add_argument("--metrics", default="accuracy,mean_tokens,flops,seconds", help="columns of the table")
    flags.add_argument("--claim", action="append", default=[], help="such as 'a.accuracy > b.accuracy + .1'")
    flags.add_argument("--majority", default="", help="a stage whose model also answers by majority votes")
    flags.add_argument("--votes", default="1,4,16,64", help="samples of those votes")
    flags.add_argument("--examples", type=int, default=256, help="questions of those votes")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def study() -> None:
        runs = folders(options.runs)
        seeds = [figures_of(folder) for folder in runs]
        if options.majority:
            votes = [int(n) for n in options.votes.split(",")]
            seeds = [
                seed | majorities(folder, options.majority, votes, options.examples)
                for seed, folder in zip(seeds, runs, strict=True)
            ]
        claims = [verdict(claim, seeds) for claim in options.claim]
        print(table(seeds, options.metrics.split(",")))
        for claim in claims:
            print(f"{'holds' if claim['holds'] else 'does not hold':14}{claim['claim']}  {claim['seeds']}")
        place = runs[0].parent
        (place / "roads.json").write_text(json.dumps({"seeds": seeds, "claims": claims}, indent=1) + "\n")
        save(draw(seeds, [stage for stage in seeds[0] if "flops" in seeds[0][stage]]), place / "roads.png")

    return guarded(study)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
