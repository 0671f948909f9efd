"""Quality against iterations: every exit criterion and threshold beside fixed depths, over runs of one config.

python -m analysis.exits runs/depth_dial/recurrent,seed=?      -> exits.json, exits.png in the first directory
python -m analysis.exits runs/depth_exits/seed=?/dear --before runs/depth_exits/seed=?/joint      dashed: before rewards
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from analysis.pictures import save
from data.sources.prompts import fixed_examples
from infer.evaluate import TaskSpec, evaluate
from infer.load import Loaded, load_run
from infer.recurrence import Recurrence
from infer.sampling import Execution, SamplingParams
from model.depth import CRITERIA, Exit
from train.cli import guarded

FIXED = (1, 2, 4, 8, 16, 32)
PROMPT_GATE = "prompt_gate"  # the gate read once, at the prompt's end, for all tokens of an answer
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "latent": (0.01, 0.03, 0.1, 0.3),
    "cosine": (1e-4, 1e-3, 1e-2),
    "kl": (5e-6, 5e-4, 5e-2),
    "min_p_kl": (5e-6, 5e-4),
    "entropy": (1e-4, 1e-2),
    "argmax": (2, 4),
    "gate": (0.3, 0.5, 0.8),
    PROMPT_GATE: (0.3, 0.5, 0.8),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """What a way to stop gave: accuracy, iterations per token, tokens per second of a run already compiled."""

    rule: str
    threshold: float
    accuracy: float
    mean_depth: float
    tokens_per_second: float
    before: bool = False


def points(run: Loaded, examples: int, depth: int, slots: int, criteria: Sequence[str]) -> list[Point]:
    """Fixed depths up to `depth` (all up to eight, else powers of two), every criterion at its thresholds within it.

    `slots`: rows answered at once; a batch waits for its slowest row. Raises ValueError for a plain stack, and for the
    criteria `gate` and `prompt_gate` where none was learnt.
    """
    if run.model.config.depth != "recurrent":
        raise ValueError("this model is a plain stack: every token takes all its layers")
    task, data = run.task(None, None), run.config["data"]
    rows = fixed_examples(
        task, run.tokenizer, "test", examples, template=data["template"], system=data["system"] or None
    )
    ways: list[tuple[str, float, Recurrence]] = [
        ("fixed", r, Recurrence(np.full(len(rows), r), depth))
        for r in (range(1, depth + 1) if depth <= 8 else [r for r in FIXED if r <= depth])
    ]
    ways += [(c, t, way(c, t, depth)) for c in criteria for t in THRESHOLDS[c]]
    sampling = SamplingParams(
        run.config["eval"]["max_new_tokens"],
        temperature=0.0,
        stop=tuple(data["stop"]),
        execution=Execution(slots=slots),
    )
    spec = TaskSpec(task, run.tokenizer, run.ending)

    def answer(recurrence: Recurrence) -> dict[str, float]:
        key = jax.random.key(0)
        return evaluate(run.model, run.params, spec, rows, key, sampling, recurrence=recurrence).metrics

    measured = []
    for rule, threshold, recurrence in ways:
        answer(recurrence)  # compiles
        started = time.perf_counter()
        metrics = answer(recurrence)
        seconds = time.perf_counter() - started
        speed = metrics["mean_tokens"] * len(rows) / seconds
        measured.append(Point(rule, threshold, metrics["accuracy"], metrics["mean_depth"], round(speed, 1)))
        print(json.dumps(dataclasses.asdict(measured[-1])), flush=True)
    return measured


def way(criterion: str, threshold: float, depth: int) -> Recurrence:
    """A way to stop within `depth` iterations: token by token, or by the gate at the prompt's end for all tokens."""
    if criterion == PROMPT_GATE:
        return Recurrence("gate", gate_threshold=threshold)
    return Recurrence(depth, exit=Exit(criterion, threshold))


def average(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """Point by point, the means over runs that were measured in the same ways."""
    names = ("accuracy", "mean_depth", "tokens_per_second")
    return [
        dataclasses.replace(same[0], **{name: float(np.mean([getattr(p, name) for p in same])) for name in names})
        for same in zip(*runs, strict=True)
    ]


def draw(found: Sequence[Point]) -> Any:
    """A matplotlib figure: accuracy against iterations per token, a line for each way to stop; dashed, as it was before
    the runs that are compared.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.8), dpi=140, layout="constrained")
    axes = figure.subplots()
    rules = list(dict.fromkeys(point.rule for point in found))
    for rule, before in dict.fromkeys((point.rule, point.before) for point in found):
        own = sorted((p.mean_depth, p.accuracy) for p in found if (p.rule, p.before) == (rule, before))
        color, width = ("0.3", 2.2) if rule == "fixed" else (f"C{rules.index(rule)}", 1.2)
        style: dict[str, Any] = {"color": color, "linewidth": width, "linestyle": "--" if before else "-"}
        label = f"{rule}, before" if before else rule
        axes.plot(*zip(*own, strict=True), marker="o", markersize=4, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")  # the usual labels are TeX, which pictures here show as it is
    axes.set_xlabel("iterations per token")
    axes.set_title("accuracy", loc="left", fontsize=10, fontweight="bold")
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.exits`."""
    flags = argparse.ArgumentParser("python -m analysis.exits", description="When a recurrent model may stop thinking.")
    flags.add_argument("runs", nargs="+", help="run directories of one config, such as a sweep's seeds")
    flags.add_argument("--before", nargs="*", default=[], help="the runs that these started from, drawn dashed")
    flags.add_argument("--examples", type=int, default=512)
    flags.add_argument("--depth", type=int, default=32, help="at most so many iterations")
    flags.add_argument("--slots", type=int, default=0, help="rows answered at once; 0: all")
    usual = [name for name in CRITERIA if name != "gate"]
    flags.add_argument("--criteria", nargs="*", default=usual, choices=list(THRESHOLDS))
    flags.add_argument("--output", default="", help="the PNG; by default in the first run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def measure() -> None:
        limits = (options.examples, options.depth, options.slots, options.criteria)
        averages = average([points(load_run(folder), *limits) for folder in options.runs])
        if options.before:
            earlier = average([points(load_run(folder), *limits) for folder in options.before])
            averages = [dataclasses.replace(point, before=True) for point in earlier] + averages
        picture = Path(options.output or Path(options.runs[0]) / "exits.png")
        save(draw(averages), picture)
        rows = [dataclasses.asdict(point) for point in averages]
        picture.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")

    return guarded(measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
