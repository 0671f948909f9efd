"""What complete runs hold, side by side: their settings, their figures, and which of them differ in the seed alone."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launch.directions import best, binomial_error, direction, is_share, shown
from launch.sweep import in_words, name_of, read_plan
from model.config import unknown
from store.records import Record, is_scalar, number, read_metrics
from store.run_directory import DERIVED, read_config, read_result
from store.terminal import one_line
from train.compute import CUMULATIVE, SIZES

LAST = 0.1  # the share of a run over which a training metric is averaged, and of its beginning that medians leave out
OWN = ("name", "seed")  # settings that change nothing of what a run is an instance of

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

    def setting(self, name: str) -> Any:
        """A setting by its dotted name, as the last stage of a pipeline has it; None without one."""
        stages = self.settings.get("stages") or [""]
        return self.settings.get(f"stage.{stages[-1]}.{name}", self.settings.get(name))


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
        what = f"{workdir} is a file" if workdir.exists() else f"there is no folder {workdir}"
        raise FileNotFoundError(f"{what}; give the --workdir of a sweep")
    if (workdir / "result.json").is_file() and (workdir / "config.json").is_file():
        return [_read(workdir)], []
    names = [run["name"] for run in read_plan(workdir)["runs"]]
    names += sorted(path.parent.name for path in workdir.glob("*/config.json") if path.parent.name not in names)
    complete = [name for name in names if (workdir / name / "result.json").is_file()]
    if not complete:
        raise ValueError(f"{workdir} holds no complete run: there is no */result.json")
    return [_read(workdir / name) for name in complete], [name for name in names if name not in complete]


def _read(folder: Path) -> Result:
    config, result = read_config(folder, {"name": str}), read_result(folder, {"evaluation": dict})
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
    """Runs by the settings in which any two differ, the seed left out, in the order of their first ones.

    Runs that differ in nothing at all are not seeds of one another: each arm of theirs is a group by itself.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    varied = [key for key in keys if len({json.dumps(run.settings.get(key)) for run in runs}) > 1]
    tails = Counter(key.rpartition(".")[2] for key in varied)
    members: dict[str, list[Result]] = {}
    for run in runs:
        members.setdefault(json.dumps([run.settings.get(key) for key in varied]), []).append(run)
    groups = []
    for same in members.values():
        settings = {key: same[0].settings.get(key) for key in varied}
        label = name_of(settings, tails) or same[0].settings.get("name") or same[0].folder.name
        arms = arms_of(same)
        groups += [Group(label if len(arms) == 1 else arm, settings, runs) for arm, runs in arms.items()]
    return _told_apart(groups)


def arms_of(same: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs of the same settings: one arm where their seeds differ, else those of like names, or each its own."""
    parts: list[Callable[[Result], str]] = [
        lambda run: "",
        lambda run: re.sub(r"(^|,)seed=[^,]*", "", run.folder.name).strip(",") or run.folder.name,
        lambda run: run.folder.name,
    ]
    for part in parts:
        arms: dict[str, list[Result]] = {}
        for run in same:
            arms.setdefault(part(run), []).append(run)
        if all(len({json.dumps(run.settings.get("seed")) for run in arm}) == len(arm) for arm in arms.values()):
            break
    return arms


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """With the settings written out where the names of folders would be the same."""
    times = Counter(group.label for group in groups)
    whole = [", ".join(f"{key}={in_words(value)}" for key, value in group.settings.items()) for group in groups]
    return [
        replace(group, label=words) if times[group.label] > 1 and words else group
        for group, words in zip(groups, whole, strict=True)
    ]


def notes(groups: Sequence[Group], metrics: Sequence[str], missing: Sequence[str], view: View) -> list[str]:
    """What a reader of the table has to know of its rows: runs that are missing, and rows that are the same."""
    notes = [f"Not complete: {', '.join(missing)}"] if missing else []
    alike: dict[str, list[str]] = {}
    for group in groups:
        settings = {key: value for key, value in group.runs[0].settings.items() if key not in OWN}
        alike.setdefault(json.dumps(settings, sort_keys=True), []).append(group.label)
    notes += [f"The same settings under several names: {', '.join(names)}" for names in alike.values() if names[1:]]
    seeds = [{json.dumps(run.settings.get("seed")) for run in group.runs} for group in groups]
    every = sorted(set().union(*seeds))
    for group, own in zip(groups, seeds, strict=True):
        left = [seed for seed in every if seed not in own]
        notes += [f"{group.label} has no seed {', '.join(left)}"] if left else []
        for metric in metrics:
            some = sum(measure(run, metric, view) is not None for run in group.runs)
            if 0 < some < len(group.runs):
                notes.append(f"{metric} of {group.label} is that of {some} of its {len(group.runs)} runs")
    return notes


def choose_metrics(runs: Sequence[Result], asked: str = "") -> list[str]:
    """The metrics asked for, comma-separated, or those of evaluation and what training shows of itself.

    Names may hold commas and colons; ValueError for an unknown one.
    """
    evaluated = [f"eval/{name}" for name in dict.fromkeys(name for run in runs for name in run.result["evaluation"])]
    trained = {name for run in runs for record in run.records for name in record}
    totals = {name for run in runs for name, value in run.result.items() if is_scalar(value)}
    if not asked:
        said = [name for name in shown(algorithms_of(runs), evaluated) if name in trained]
        return [*evaluated, *said, *sizes_of(runs)]
    known, parts, chosen = {*evaluated, *trained, *totals}, asked.split(","), list[str]()
    while parts:
        sizes = (n for n in range(len(parts), 0, -1) if _is_metric(",".join(parts[:n]), known))
        if not (size := next(sizes, 0)):
            one = next((name for name in parts[0].split(":") if name not in known), parts[0])
            raise ValueError(unknown("metric", one, sorted(known)))
        chosen.append(",".join(parts[:size]))
        parts = parts[size:]
    return chosen


def sizes_of(runs: Sequence[Result]) -> list[str]:
    """The columns that tell how large models are: where runs differ in it, or a core runs again and again."""
    found = {tuple(run.result.get(name) for name in SIZES) for run in runs}
    looped = any(parameters != equivalent for parameters, equivalent in found)
    return [*SIZES[: 1 + looped]] if looped or len(found) > 1 else []


def _is_metric(name: str, known: Collection[str]) -> bool:
    """Whether it is one of the known, or `a:b` of two of them."""
    cuts = [place for place, char in enumerate(name) if char == ":"]
    return name in known or any(name[:cut] in known and name[cut + 1 :] in known for cut in cuts)


def algorithms_of(runs: Sequence[Result]) -> list[str]:
    """The algorithms that runs, or the last stages of pipelines, were trained by."""
    return sorted({str(name) for run in runs if (name := run.setting("algorithm"))})


def curve(run: Result, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, as far as it was written."""
    points = [(record["step"], record[metric]) for record in run.records if is_scalar(record.get(metric))]
    return [step for step, _ in points], [value for _, value in points]


def spent(run: Result, metric: str) -> dict[int, float]:
    """What a metric adds up to by the end of every step, such as the samples drawn, or has come to, such as the FLOPs;
    the step itself without one.
    """
    total, totals = 0.0, {0: 0.0}
    for record in run.records:
        found = record[metric] if is_scalar(record.get(metric)) else None
        total = total if found is None else found + (0.0 if metric in CUMULATIVE else total)
        totals[record["step"]] = total if metric else float(record["step"])
    return totals


def measure(run: Result, metric: str, view: View = AS_TRAINED) -> float | None:
    """One figure of a run: `eval/x` at its end or at the point asked for, a training metric over its last tenth or as
    its median, what it has spent at its end, `a:b` for what a is over all of b, or a number of result.json. None where
    the run has no such figure.
    """
    if metric.startswith("eval/"):
        return evaluated(run, metric, view)
    steps, values = curve(run, metric)
    if ":" in metric and not steps:
        sums = [sum(settled(run, part)) for part in metric.split(":")]
        return sums[0] / sums[1] if sums[1] else None
    if metric in CUMULATIVE and values:
        return values[-1]
    last = [value for step, value in zip(steps, values, strict=True) if step > (1 - LAST) * steps[-1]]
    if view.median and (after := settled(run, metric)):
        return statistics.median(after)
    return mean(last) if last else number(run.result.get(metric))


def evaluated(run: Result, metric: str, view: View) -> float | None:
    """An evaluation at the end of a run, or on the line between the two that lie around the point asked for."""
    if view.at is None:
        return number(run.result["evaluation"].get(metric.removeprefix("eval/")))
    steps, values = curve(run, metric)
    amounts = [spent(run, view.over)[step] for step in steps]
    return float(np.interp(view.at, amounts, values)) if amounts and amounts[0] <= view.at <= amounts[-1] else None


def settled(run: Result, metric: str) -> list[float]:
    """The values of a training metric without those of the first tenth of the run, in which programs are compiled; of
    what counts from the start of the run what was added since.
    """
    steps, values = curve(run, metric)
    after = [value for step, value in zip(steps, values, strict=True) if step > LAST * run.records[-1]["step"]]
    return [after[-1] - after[0]] if metric in CUMULATIVE and after else after


def mean(values: Sequence[float]) -> float:
    """The mean, nan of infinities that cancel."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))


def over_seeds(group: Group, metric: str, view: View = AS_TRAINED) -> Cell | None:
    """Mean and standard deviation (n - 1) of a metric over the runs that have it."""
    values = [value for run in group.runs if (value := measure(run, metric, view)) is not None]
    if not values:
        return None
    with np.errstate(invalid="ignore"):
        return mean(values), float(np.std(values, ddof=1)) if len(values) > 1 else None


def standard_error(group: Group, metric: str, view: View = AS_TRAINED) -> float:
    """How far the mean of a metric may be off: by its deviation over seeds, or of a single run by the examples that a
    share was measured on; 0 where neither is known.
    """
    summary = over_seeds(group, metric, view)
    if summary is None:
        return 0.0
    runs = [run for run in group.runs if measure(run, metric, view) is not None]
    if summary[1] is not None:
        return summary[1] / len(runs) ** 0.5
    return binomial_error(summary[0], int(runs[0].setting("eval.examples") or 0)) if is_share(metric) else 0.0


def best_rows(groups: Sequence[Group], metric: str, view: View = AS_TRAINED) -> list[int]:
    """The rows of a column to be marked (launch/directions.py)."""
    sign = direction(metric, algorithms_of([run for group in groups for run in group.runs]))
    cells = [over_seeds(group, metric, view) for group in groups]
    means = [None if cell is None else cell[0] for cell in cells]
    return best(sign, means, [standard_error(group, metric, view) for group in groups])


def in_figures(found: Cell | None) -> str:
    """`1.0691 ± 0.0021`: two figures of the deviation decide how many places are shown."""
    if found is None:
        return ""
    mean, deviation = found
    if not deviation or not math.isfinite(deviation):
        return f"{mean:.5g}"
    places = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def in_markdown(text: str) -> str:
    """Text for a cell of a table: on one line, and shown as it is."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", text)
