"""What budget forcing is worth: accuracy against thinking tokens, of models that slip and of models that do not.

python -m analysis.studies.budget_forcing "runs/budget_forcing/*"  -> strategies.jsonl in each, forcing.png in one

Maximum and "Wait" (s1, 2501.19393, section 3.1), and two of its baselines: rejection sampling, and a bound that the
prompt names. Answers are sampled at temperature 1, for the greedy ones hold no slips.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import jax
import numpy as np

from analysis.budget import RESULTS, by_strategy, control, joined, performance, read_results, scaling
from analysis.pictures import save
from data.sources.prompts import fixed_examples
from infer.evaluate import TaskSpec
from infer.load import Loaded, load_run
from infer.sampling import SamplingParams
from infer.strategies import Answers, answer, build_strategy
from store.json_files import read_json
from store.records import replace_text
from train.cli import guarded

BUDGETS, BOUNDS, WAITS = (8, 12, 16, 32, 64), (24, 32, 48, 64), (0, 1, 2, 4, 6)
ROOM = 232  # tokens of an answer: fourteen passes of 15, their waits and delimiters


@dataclasses.dataclass(frozen=True)
class Setting:
    """A point of a curve: its `curve`, the `budget` given, the strategy's name and options."""

    curve: str
    budget: int
    strategy: str
    options: dict[str, Any]


def settings() -> Iterator[Setting]:
    """All points of the study."""
    forced = {"delimiters": "task", "wait": "W"}
    for most in BUDGETS:
        yield Setting("maximum", most, "budget", {"max_thinking": most, **forced})
    for waits in WAITS:
        yield Setting("wait", waits, "budget", {"max_thinking": ROOM - 32, "waits": waits, **forced})
    for bound in BOUNDS:
        yield Setting("rejection", bound, "rejection", {"longest": bound})
        yield Setting("bound in the prompt", bound, "token_conditional", {"bound": bound, "instruction": "{bound}="})


def thinking(answers: Answers) -> np.ndarray:
    """The thinking tokens of each answer [E]: as counted under a budget, else those between its delimiters."""
    candidates = answers.candidates.rows(answers.chosen)
    if candidates.thought.any():
        return candidates.thought
    thoughts = [text.partition("</t>")[0].removeprefix("<t>") for text in candidates.texts]
    return np.array([len(text) for text in thoughts])


def measured(run: Loaded, count: int) -> Iterator[dict[str, Any]]:
    """The results of one run, as `analysis.budget` reads them."""
    task = run.task()
    examples = fixed_examples(task, run.tokenizer, "test", count)
    spec = TaskSpec(task, run.tokenizer)
    for setting in settings():
        strategy = build_strategy(setting.strategy, spec, SamplingParams(ROOM), **setting.options)
        answers = answer(strategy, run.model, run.params, examples, jax.random.key(0))
        pairs = zip(examples, answers.texts, strict=True)
        right = [task.verify(example["example"], text).score >= 1 for example, text in pairs]
        tokens = float(thinking(answers).mean())
        yield {
            "strategy": setting.curve,
            "budget": setting.budget,
            "tokens": tokens,
            "accuracy": float(np.mean(right)),
        }


def folders(patterns: Sequence[str]) -> list[Path]:
    """Run directories; a sweep's logs beside them are passed over. FileNotFoundError where a pattern has none."""
    found = []
    for pattern in patterns:
        paths = sorted(map(Path, glob(pattern)))
        matching = [path for path in paths if (path / "config.json").is_file()]
        if not matching and not any(path.suffix == ".log" for path in paths):
            raise FileNotFoundError(f"no run directory matches {pattern}")
        found += matching
    if not found:
        raise FileNotFoundError(f"no run directory matches {' '.join(patterns)}")
    return found


def by_slip(runs: Sequence[Path]) -> dict[float, list[Path]]:
    """The runs by the chance of a slip in their training texts, the largest first; ValueError for another task's."""
    groups: dict[float, list[Path]] = {}
    for run in runs:
        data = read_json(run / "config.json")["data"]
        if data["task"] != "running_sums":
            raise ValueError(f"{run} was trained on {data['task']!r}: this study is of running_sums")
        groups.setdefault(float(data["options"].get("slip", 0.3)), []).append(run)
    return dict(sorted(groups.items(), reverse=True))


def table(slip: float, runs: Sequence[Path]) -> str:
    """Each curve's points and s1's metrics as Markdown; the bound of control is each point's own budget."""
    points = by_strategy(joined([result for run in runs for result in read_results(run)]))
    lines = [f"| slips {slip:g}, {len(runs)} runs | budget: tokens, accuracy | control | scaling | performance |"]
    lines.append("|---|---|---|---|---|")
    for name, own in points.items():
        tokens, accuracy = [p.tokens for p in own], [p.accuracy for p in own]
        inside = "" if name == "wait" else f"{control(tokens, 0, [float(p.budget) for p in own]):.0%}"
        told = "; ".join(f"{p.budget}: {p.tokens:.0f}, {p.accuracy:.3f} ± {p.deviation:.3f}" for p in own)
        slope = f"{1e5 * scaling(tokens, accuracy):.1f}"
        lines.append(f"| {name} | {told} | {inside} | {slope} | {performance(accuracy):.1%} |")
    return "\n".join(lines) + "\n"


def gains(runs: Sequence[Path]) -> dict[int, np.ndarray]:
    """What each number of waits adds to the accuracy without any, by run."""
    rows = [{r["budget"]: r["accuracy"] for r in read_results(run) if r["strategy"] == "wait"} for run in runs]
    return {waits: np.array([row[waits] - row[0] for row in rows]) for waits in WAITS if waits}


def draw(groups: dict[float, list[Path]]) -> Any:
    """Accuracy against thinking tokens for each chance of a slip, a line for each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 3.4), dpi=140, layout="constrained")
    for axes, (slip, runs) in zip(
        np.atleast_1d(figure.subplots(1, len(groups), sharey=True)), groups.items(), strict=True
    ):
        for name, own in by_strategy(joined([r for run in runs for r in read_results(run)])).items():
            spent, accuracy = [p.tokens for p in own], [p.accuracy for p in own]
            axes.errorbar(spent, accuracy, [p.deviation for p in own], marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.4g}")
        axes.set_xlabel("thinking tokens per answer")
        axes.set_title(f"accuracy, slips {slip:g}", loc="left", fontsize=10, fontweight="bold")
        axes.grid(color="0.92")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.budget_forcing`."""
    flags = argparse.ArgumentParser("python -m analysis.studies.budget_forcing", description="What waiting is worth.")
    flags.add_argument("runs", nargs="+", help="run directories of configs/ablations/budget_forcing.py, or patterns")
    flags.add_argument("--examples", type=int, default=512, help="questions of the test split")
    return flags


def study(options: argparse.Namespace) -> None:
    """Measures what is not measured yet, prints tables and gains, draws the picture."""
    groups = by_slip(folders(options.runs))
    for run in [run for runs in groups.values() for run in runs]:
        if not (run / RESULTS).is_file():
            results = measured(load_run(run), options.examples)
            replace_text(run / RESULTS, "".join(json.dumps(result) + "\n" for result in results))
    for slip, runs in groups.items():
        print(table(slip, runs))
        for waits, added in gains(runs).items():
            spread = added.std(ddof=1) if len(added) > 1 else 0.0
            print(f"  {waits} waits add {added.mean():+.3f} ± {spread:.3f}; by run {added.round(3).tolist()}")
    picture = next(iter(groups.values()))[0] / "forcing.png"
    save(draw(groups), picture)
    print(f"drawn: {picture}")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: study(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
