"""Accuracy against tokens of strategies at test time, with s1's metrics: control, scaling, performance.

python -m analysis.budget runs/s1/seed=? --high=256      -> budget.md, budget.png in the first directory

Read are JSON files with a list of results, or JSON lines with one each: {"strategy", "budget", "tokens", "accuracy"}
and, if known, "flops". `tokens` are the thinking tokens of an answer on average, `accuracy` a share, `budget` is what
the strategy was given, a number or text. Of a directory its strategies.jsonl is read. Results of one strategy and
budget are runs of it, such as seeds: their means are one point.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.pictures import save
from store.files import read_json
from store.json_files import described, fault, read_json_lines
from store.objects import place
from store.records import replace_text
from store.terminal import one_line, visible
from train.cli import guarded

RESULTS = "strategies.jsonl"
FIELDS = {"strategy": str, "budget": object, "tokens": object, "accuracy": object}
AXES = {"tokens": "thinking tokens per answer", "flops": "FLOPs per answer"}


def control(tokens: ArrayLike, low: float = 0.0, high: ArrayLike = math.inf) -> float:
    """The share of runs whose mean thinking tokens lie in low .. high, both included (2501.19393, section 3.2).

    `high` may be a number for each run, such as its own budget. Raises ValueError without runs and for high < low.
    """
    tokens, high = _numbers("tokens", tokens), np.asarray(high, np.float64)
    if not (high >= low).all():
        raise ValueError(f"control needs low <= high, got {low} and {high}")
    return float(((low <= tokens) & (tokens <= high)).mean())


def scaling(tokens: ArrayLike, accuracy: ArrayLike) -> float:
    """The unweighted mean slope, accuracy per token, over all pairs of runs (2501.19393, section 3.2).

    A pair is one run and another with more tokens; two with as many tokens have no slope and are none. Raises
    ValueError where there is no pair.
    """
    tokens, accuracy = _numbers("tokens", tokens), _numbers("accuracy", accuracy)
    points = sorted(zip(tokens.tolist(), accuracy.tolist(), strict=True))
    slopes = [(f - e) / (b - a) for (a, e), (b, f) in combinations(points, 2) if b > a]
    if not slopes:
        raise ValueError(f"scaling needs two runs of different tokens, got {len(points)} of {set(tokens.tolist())}")
    return math.fsum(slopes) / len(slopes)


def performance(accuracy: ArrayLike) -> float:
    """The best accuracy of all runs (2501.19393, section 3.2); ValueError without any."""
    return float(_numbers("accuracy", accuracy).max())


def _numbers(what: str, values: ArrayLike) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"expected the {what} of at least one run, each a finite number, got {numbers}")
    return numbers


@dataclasses.dataclass(frozen=True)
class Point:
    """A strategy at a budget: means over its runs, and the deviation of accuracy between them (one run: 0)."""

    strategy: str
    budget: str
    runs: int
    tokens: float
    accuracy: float
    deviation: float
    flops: float | None


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file, or in the strategies.jsonl of a directory.

    Raises FileNotFoundError for a missing file, ValueError that names it and what is wrong for one that holds anything
    else.
    """
    if path.is_dir():
        path = path / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give a file of results, or a directory with {RESULTS}")
    results = read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(results, list) or not results:
        raise ValueError(f"{path} holds {described(results)}, expected a list of results, at least one")
    for number, result in enumerate(results, 1):
        if wrong := fault(result, FIELDS) or _fault(result):
            raise ValueError(f"{path}, result {number} cannot be used: {wrong}")
    return results


def _fault(result: dict[str, Any]) -> str:
    """What is wrong with the numbers of a result, in words; "" for nothing."""
    given = {name: result[name] for name in ("tokens", "accuracy", "flops") if result.get(name) is not None}
    for name in ("tokens", "accuracy"):
        if name not in given:
            return f"{name} is null"
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            return f"{name} is {described(value)}, expected a finite number from 0 on"
    return f"accuracy is {given['accuracy']}, expected a share from 0 to 1" if given["accuracy"] > 1 else ""


def joined(results: Sequence[dict[str, Any]]) -> list[Point]:
    """A point for each strategy and budget: strategies in the order of their first result, then by tokens."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        budget = "" if result["budget"] is None else str(result["budget"])
        groups.setdefault((result["strategy"], budget), []).append(result)
    points = [_point(*key, runs) for key, runs in groups.items()]
    order = list(dict.fromkeys(point.strategy for point in points))
    return sorted(points, key=lambda point: (order.index(point.strategy), point.tokens))


def _point(strategy: str, budget: str, runs: Sequence[dict[str, Any]]) -> Point:
    accuracy = np.array([run["accuracy"] for run in runs], np.float64)
    flops = [run["flops"] for run in runs if run.get("flops") is not None]
    return Point(
        strategy,
        budget,
        len(runs),
        float(np.mean([run["tokens"] for run in runs])),
        float(accuracy.mean()),
        float(accuracy.std(ddof=1)) if len(runs) > 1 else 0.0,
        float(np.mean(flops)) if len(flops) == len(runs) else None,
    )


def by_strategy(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each strategy, in order."""
    return {name: [p for p in points if p.strategy == name] for name in dict.fromkeys(p.strategy for p in points)}


def tables(points: Sequence[Point], low: float | None = None, high: float | None = None) -> str:
    """Two tables in Markdown: every point, and the metrics of every strategy over its points.

    Control is told where a bound is given, scaling where two points differ in tokens.
    """
    every = [
        [p.strategy, p.budget, str(p.runs), f"{p.tokens:.1f}", _share(p), "" if p.flops is None else f"{p.flops:.3g}"]
        for p in points
    ]
    metrics = [[name, str(len(own)), *_metrics(own, low, high)] for name, own in by_strategy(points).items()]
    inside = f"control ({low or 0:g} to {'any' if high is None else f'{high:g}'} tokens)"
    return "\n".join(
        [
            _markdown(["strategy", "budget", "runs", "tokens", "accuracy", "FLOPs"], every),
            _markdown(["strategy", "points", inside, "scaling (points per 1,000 tokens)", "performance"], metrics),
        ]
    )


def _share(point: Point) -> str:
    return f"{point.accuracy:.3f}" + (f" ± {point.deviation:.3f}" if point.runs > 1 else "")


def _metrics(own: Sequence[Point], low: float | None, high: float | None) -> list[str]:
    """Control, scaling and performance of one strategy as text; "" for what cannot be said."""
    tokens, accuracy = [p.tokens for p in own], [p.accuracy for p in own]
    bounded = low is not None or high is not None
    inside = f"{control(tokens, low or 0.0, math.inf if high is None else high):.0%}" if bounded else ""
    slope = f"{1e5 * scaling(tokens, accuracy):.2f}" if len(set(tokens)) > 1 else ""
    return [inside, slope, f"{performance(accuracy):.1%}"]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([one_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(points: Sequence[Point], over: str = "tokens") -> Any:
    """A matplotlib figure: accuracy against tokens or FLOPs, a line for each strategy, bars of one deviation.

    Raises ValueError, naming it, for a point without FLOPs where these are asked for.
    """
    from matplotlib.figure import Figure

    if missing := [p for p in points if getattr(p, over) is None]:
        raise ValueError(
            f"{missing[0].strategy}, budget {missing[0].budget or 'none'}, has no {over}: draw over tokens"
        )
    figure = Figure(figsize=(5.4, 3.8), dpi=140, layout="constrained")
    axes = figure.subplots()
    for name, own in by_strategy(points).items():
        own = sorted(own, key=lambda p: float(getattr(p, over)))
        spent, accuracy = [getattr(p, over) for p in own], [p.accuracy for p in own]
        # matplotlib leaves out names that begin with "_"
        label = f" {one_line(name)}"
        axes.errorbar(spent, accuracy, [p.deviation for p in own], marker="o", markersize=4, linewidth=1.2, label=label)
    if all(getattr(p, over) > 0 for p in points):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.4g}")  # the usual labels are TeX, which pictures here show as it is
    axes.set_xlabel(AXES[over])
    axes.set_title("accuracy", loc="left", fontsize=10, fontweight="bold")
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.budget`."""
    flags = argparse.ArgumentParser("python -m analysis.budget", description="What thinking longer brings.")
    flags.add_argument("results", nargs="+", help=f"directories with {RESULTS}, or files of results")
    flags.add_argument("--low", type=float, help="control: the fewest thinking tokens that were allowed")
    flags.add_argument("--high", type=float, help="control: the most thinking tokens that were allowed")
    flags.add_argument("--over", default="tokens", choices=list(AXES), help="what the picture's axis shows")
    flags.add_argument("--output", default="", help="the PNG; by default budget.png beside the first results")
    return flags


def report(options: argparse.Namespace) -> None:
    """Prints the tables, and writes them and the picture."""
    paths = [place(name) for name in options.results]
    points = joined([result for path in paths for result in read_results(path)])
    first = paths[0] if paths[0].is_dir() else paths[0].parent
    picture = place(options.output) if options.output else first / "budget.png"
    if picture.suffix != ".png":
        raise ValueError(f"the picture is a PNG and the table stands beside it, got --output={options.output}")
    text = tables(points, options.low, options.high)
    save(draw(points, options.over), picture)
    replace_text(picture.with_suffix(".md"), text)
    print(visible(text), end="")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
