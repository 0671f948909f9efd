"""What complete runs hold, side by side: their settings, their figures, and which of them differ in the seed alone."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.sweep import PLAN, name_of
from model.config import unknown
from train.metrics import Record, is_scalar, number, read_metrics
from train.run_directory import DERIVED

LAST = 0.1  # the share of a run over which a training metric is averaged, and of its beginning that medians leave out
# Of the metrics of training, those in a table where nothing is asked for.
SHOWN = ("loss", "moe/max_violation", "peer/usage", "peer/unevenness")
HIGHER = ("accuracy", "score", "pass@", "reward", "usage", "finished", "readable")
LOWER = ("loss", "violation", "unevenness")

Cell = tuple[float, float | None]  # mean and standard deviation over seeds, None for a single one


@dataclass(frozen=True)
class View:
    """How runs are compared: `over` what curves are drawn, the running sum of that metric or (nothing) steps; `at`
    which point of it evaluations are read, their end without one; `median`: of training metrics, not their end.
    """

    over: str = ""
    at: float | None = None
    median: bool = False


AS_TRAINED = View()


@dataclass(frozen=True)
class Result:
    """One complete run: its settings by dotted name, its result.json, the lines of its metrics.jsonl, its directory."""

    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    records: Sequence[Record]
    folder: Path


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; `settings` are those in which groups differ."""

    label: str
    settings: Mapping[str, Any]
    runs: Sequence[Result]


def read_results(workdir: Path) -> tuple[list[Result], list[str]]:
    """The complete runs below a directory, in the sweep's order, and the names of those that are not complete; of a
    run's own directory that run.

    Raises FileNotFoundError for a missing directory and ValueError for one without a complete run.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(f"there is no folder {workdir}; give the --workdir of a sweep")
    if (workdir / "result.json").is_file() and (workdir / "config.json").is_file():
        return [_read(workdir)], []
    plan = workdir / PLAN
    names = [run["name"] for run in json.loads(plan.read_text())["runs"]] if plan.is_file() else []
    names += sorted(path.parent.name for path in workdir.glob("*/config.json") if path.parent.name not in names)
    complete = [name for name in names if (workdir / name / "result.json").is_file()]
    if not complete:
        raise ValueError(f"{workdir} holds no complete run: there is no */result.json")
    return [_read(workdir / name) for name in complete], [name for name in names if name not in complete]


def _read(folder: Path) -> Result:
    config, result = (
        json.loads((folder / name).read_text(encoding="utf-8-sig")) for name in ("config.json", "result.json")
    )
    for name in (*DERIVED, "launch"):  # where it was trained is no setting of it
        config.pop(name, None)
    last = folder / config["stages"][-1] if config.get("stages") else folder
    return Result(dict(flat(config)), result, read_metrics(last), folder)


def flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def grouped(runs: Sequence[Result]) -> list[Group]:
    """Runs by the settings in which any two differ, the seed left out, in the order of their first ones."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    varied = [key for key in keys if len({json.dumps(run.settings.get(key)) for run in runs}) > 1]
    tails = Counter(key.rpartition(".")[2] for key in varied)
    members: dict[str, list[Result]] = {}
    for run in runs:
        members.setdefault(json.dumps([run.settings.get(key) for key in varied]), []).append(run)
    groups = []
    for same in members.values():
        settings = {key: same[0].settings.get(key) for key in varied}
        groups.append(Group(name_of(settings, tails) or same[0].settings["name"], settings, same))
    return groups


def choose_metrics(runs: Sequence[Result], asked: str = "") -> list[str]:
    """The metrics asked for, comma-separated, or those of evaluation and of `SHOWN`; ValueError for an unknown one."""
    evaluated = [f"eval/{name}" for name in dict.fromkeys(name for run in runs for name in run.result["evaluation"])]
    trained = {name for run in runs for record in run.records for name in record}
    totals = {name for run in runs for name, value in run.result.items() if is_scalar(value)}
    for name in filter(None, asked.replace(":", ",").split(",")):
        if name not in {*evaluated, *trained, *totals}:
            raise ValueError(unknown("metric", name, sorted({*evaluated, *trained, *totals})))
    return asked.split(",") if asked else [*evaluated, *(name for name in SHOWN if name in trained)]


def curve(run: Result, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, as far as it was written."""
    points = [(record["step"], record[metric]) for record in run.records if is_scalar(record.get(metric))]
    return [step for step, _ in points], [value for _, value in points]


def spent(run: Result, metric: str) -> dict[int, float]:
    """What a metric adds up to by the end of every step, such as the samples drawn; the step itself without one."""
    total, found = 0.0, {0: 0.0}
    for record in run.records:
        total += record[metric] if is_scalar(record.get(metric)) else 0.0
        found[record["step"]] = total if metric else float(record["step"])
    return found


def measure(run: Result, metric: str, view: View = AS_TRAINED) -> float | None:
    """One figure of a run: `eval/x` at its end or at the point asked for, a training metric over its last tenth or as
    its median, `a:b` for what a is over all of b, or a number of result.json. None where the run has no such figure.
    """
    if metric.startswith("eval/"):
        return evaluated(run, metric, view)
    if ":" in metric:
        sums = [sum(settled(run, part)) for part in metric.split(":")]
        return sums[0] / sums[1] if sums[1] else None
    steps, values = curve(run, metric)
    last = [value for step, value in zip(steps, values, strict=True) if step > (1 - LAST) * steps[-1]]
    if view.median and (after := settled(run, metric)):
        return statistics.median(after)
    return statistics.fmean(last) if last else number(run.result.get(metric))


def evaluated(run: Result, metric: str, view: View) -> float | None:
    """An evaluation at the end of a run, or on the line between the two that lie around the point asked for."""
    if view.at is None:
        return number(run.result["evaluation"].get(metric.removeprefix("eval/")))
    steps, values = curve(run, metric)
    amounts = [spent(run, view.over)[step] for step in steps]
    return float(np.interp(view.at, amounts, values)) if amounts and amounts[0] <= view.at <= amounts[-1] else None


def settled(run: Result, metric: str) -> list[float]:
    """The values of a training metric without those of the first tenth of the run, in which programs are compiled."""
    steps, values = curve(run, metric)
    return [value for step, value in zip(steps, values, strict=True) if step > LAST * run.records[-1]["step"]]


def over_seeds(group: Group, metric: str, view: View = AS_TRAINED) -> Cell | None:
    """Mean and standard deviation (n - 1) of a metric over the runs that have it."""
    values = [value for run in group.runs if (value := measure(run, metric, view)) is not None]
    if not values:
        return None
    # Not statistics.stdev: it raises for what is not finite, which runs may end in.
    return statistics.fmean(values), float(np.std(values, ddof=1)) if len(values) > 1 else None


def best(cells: Sequence[Cell | None], metric: str) -> int | None:
    """The row with the best mean; None where nothing can be compared or the metric is neither good nor bad."""
    if metric.startswith("time/"):  # of a reward, too: a part of a step's time is short where another one is long
        return None
    sign = 1 if any(word in metric for word in HIGHER) else -1 if any(word in metric for word in LOWER) else 0
    ranked = [(sign * found[0], -row) for row, found in enumerate(cells) if found and math.isfinite(found[0])]
    return -max(ranked)[1] if sign and len(ranked) > 1 else None
