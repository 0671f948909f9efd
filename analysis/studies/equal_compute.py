"""Many answers or one long thought, at equal FLOPs: votes and the best of n against a chain, or against iterations.

python -m analysis.studies.equal_compute "runs/equal_compute/*"  -> strategies.jsonl in each, equal.png in the first

A curve is one set of samples: majority and the best of k (by the task's verifier) for every k are unbiased estimates
from all of it (infer/strategies/estimators.py). A token costs 2 FLOPs for each weight that it meets, those of a
recurrent core as often as it runs; a prompt is paid once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from analysis.budget import RESULTS, by_strategy, joined, read_results
from analysis.pictures import save
from analysis.studies.budget_forcing import folders
from data.sources.prompts import fixed_examples
from infer.asking import Asker, Candidates, TaskSpec, asked_of, prompts_of
from infer.budget import DELIMITERS, Budget
from infer.load import Loaded, load_run
from infer.recurrence import Recurrence
from infer.sampling import SamplingParams
from infer.strategies.base import judging
from infer.strategies.estimators import majority_at_k, pass_at_k
from infer.strategies.votes import label_answers
from model.compute import flops
from model.reports import Work
from store.json_files import read_json
from store.records import replace_text
from train.cli import guarded

SAMPLES, CHAINS, DEPTHS = 32, 8, (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Samples:
    """`n` answers to each example, and the FLOPs of each and of the prompts, on average."""

    candidates: Candidates
    n: int
    each: float
    prompt: float


def drawn(run: Loaded, spec: TaskSpec, examples: Sequence[Any], sampling: SamplingParams, depth: int = 0) -> Samples:
    """One set of samples, at so many iterations (0: no recurrent model)."""
    recurrence = Recurrence(depth) if depth else None
    asker = Asker(run.model, run.params, spec, sampling, recurrence)
    candidates = asker.candidates(asker.rollout(prompts_of(examples), jax.random.key(0)))
    cost = flops(run.model, Work(1, depth), trains=False)
    prompt = float(np.mean([len(prompt) for prompt in prompts_of(examples)]))
    return Samples(candidates, sampling.n, cost * float(candidates.tokens.mean()), cost * prompt)


def curves(name: str, spec: TaskSpec, examples: Sequence[Any], samples: Samples) -> Iterator[dict[str, Any]]:
    """Majority and the best of k by the verifier, for k = 1, 2, 4 ..., as `analysis.budget` reads results."""
    with judging(spec) as judge:
        asked = asked_of(examples, samples.candidates)
        verdicts = judge(asked, samples.candidates.texts)
        parsed = [verdict.parsed for verdict in verdicts]
        labels = label_answers(spec.task, judge, parsed, samples.candidates.example_of).labels
    right = np.array([verdict.score >= 1 for verdict in verdicts]).reshape(-1, samples.n)
    voted = [majority_at_k(row, one).values for row, one in zip(labels.reshape(right.shape), right, strict=True)]
    votes, k, tokens = np.mean(voted, 0), 1, float(samples.candidates.tokens.mean())
    while k <= samples.n:
        best = float(np.mean([pass_at_k(samples.n, int(row.sum()), k) for row in right]))
        spent = {"budget": k, "tokens": k * tokens, "flops": samples.prompt + k * samples.each}
        yield {"strategy": f"{name}, majority", "accuracy": float(votes[k - 1]), **spent}
        yield {"strategy": f"{name}, best by the verifier", "accuracy": best, **spent}
        k *= 2


def measured(run: Loaded, count: int) -> Iterator[dict[str, Any]]:
    """All results of one run: what is compared follows from its task and its model."""
    task = run.task()
    examples, spec = fixed_examples(task, run.tokenizer, "test", count), TaskSpec(task, run.tokenizer)
    if run.model.config.depth == "recurrent":
        for depth in DEPTHS:
            samples = drawn(run, spec, examples, SamplingParams(16, n=CHAINS), depth)
            yield from curves(f"{depth} iterations", spec, examples, samples)
        return
    # What opens a thought ends an answer that was to be short: it votes for nothing, and costs a token.
    opens = run.tokenizer.encode("<think>")[0]
    samples = drawn(run, spec, examples, SamplingParams(24, n=SAMPLES, stop=(opens,)))
    yield from curves("answers", spec, examples, samples)
    if "think" in examples[0]["example"]:
        chain = SamplingParams(64, n=CHAINS, budget=Budget(delimiters=DELIMITERS["think"]))
        yield from curves("chains", spec, examples, drawn(run, spec, examples, chain))


def by_name(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs by what the sweep calls them."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(read_json(run / "config.json")["name"], []).append(run)
    return groups


def table(name: str, runs: Sequence[Path]) -> str:
    """The points of one model as Markdown: FLOPs and accuracy for each number of samples."""
    points = by_strategy(joined([result for run in runs for result in read_results(run)]))
    lines = [f"| {name}, {len(runs)} runs | samples: MFLOPs a question, accuracy |", "|---|---|"]
    for curve, own in points.items():
        told = [f"{p.budget}: {(p.flops or 0) / 1e6:.1f}, {p.accuracy:.3f} ± {p.deviation:.3f}" for p in own]
        lines.append(f"| {curve} | {'; '.join(told)} |")
    return "\n".join(lines) + "\n"


def draw(groups: dict[str, list[Path]]) -> Any:
    """Accuracy against FLOPs for each model, a line for each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.1 * len(groups), 3.6), dpi=140, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    for axes, (name, runs) in zip(panels, groups.items(), strict=True):
        for curve, own in by_strategy(joined([r for run in runs for r in read_results(run)])).items():
            spent, accuracy = [(p.flops or 0) / 1e6 for p in own], [p.accuracy for p in own]
            style = "--" if curve.endswith("verifier") else "-"
            axes.plot(spent, accuracy, style, marker="o", markersize=3, linewidth=1.1, label=curve)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.4g}")
        axes.set_xlabel("MFLOPs a question")
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=6)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.equal_compute`."""
    flags = argparse.ArgumentParser("python -m analysis.studies.equal_compute", description="Votes or thought.")
    flags.add_argument("runs", nargs="+", help="run directories of configs/ablations/equal_compute.py, or patterns")
    flags.add_argument("--examples", type=int, default=256, help="questions of the test split")
    return flags


def study(options: argparse.Namespace) -> None:
    """Measures what is not measured yet, prints the tables, draws the picture."""
    groups = by_name(folders(options.runs))
    for run in [run for runs in groups.values() for run in runs]:
        if not (run / RESULTS).is_file():
            results = measured(load_run(run), options.examples)
            replace_text(run / RESULTS, "".join(json.dumps(result) + "\n" for result in results))
    for name, runs in groups.items():
        print(table(name, runs))
    picture = next(iter(groups.values()))[0] / "equal.png"
    save(draw(groups), picture)
    print(f"drawn: {picture}")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: study(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
