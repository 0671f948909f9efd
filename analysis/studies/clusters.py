"""Whether clusters find right programs in fewer submissions than a filter does, and when they lose: o1-ioi's strategy.

python -m analysis.studies.clusters                      -> clusters.json, clusters.png in runs/clusters

Simulated problems of three subtasks (analysis/studies/contest.py). Every arm submits the same samples. Under
independent errors the order is to be random < public filter < clusters; under correlated ones, where most wrong
programs are the same wrong one, the largest cluster has to lose to the scorer. Under a sharp scorer its noise is
halved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from analysis.pictures import save
from analysis.studies.contest import Contest, Problem, problems
from infer.strategies.clusters import Weights
from infer.strategies.estimators import Estimate, over_examples
from infer.strategies.submissions import MOST, PENALTIES, Evidence, Rule, random_search, solved_after, submit
from train.cli import guarded

SHOWN = (3, 6, 12, 25, 50)  # submissions after which is told how far an arm is
# What is other than in `Contest()`.
CONDITIONS: dict[str, dict[str, Any]] = {
    "independent": {},
    "correlated": {"popular": 0.7},
    "sharp scorer": {"noise": (0.5, 0.25)},
}
NOTHING = Weights(scorer=0.0, errors=0.0, public=0.0, repeated=0.0)
FILTER = dataclasses.replace(NOTHING, public=10.0)
FIXED = {
    "random": Rule(NOTHING, clustered=False, narrows=False),
    "filter": Rule(FILTER, clustered=False, narrows=False),
    "scorer": Rule(dataclasses.replace(FILTER, scorer=1.0), clustered=False, narrows=False),
    "majority": Rule(dataclasses.replace(FILTER, size=1.0)),
    "size": Rule(dataclasses.replace(FILTER, size=1.0, repeated=1.0)),
}
Curves = dict[str, np.ndarray]  # arm -> solved subtasks by problem and number of submissions, [problems, MOST + 1]


def curve(problem: Problem, evidence: Evidence, rule: Rule) -> np.ndarray:
    """How many subtasks a rule has solved after 0 to MOST submissions."""
    return solved_after(submit(evidence, problem.judge, rule), problem.contest.subtasks, MOST)


def searched(past: Sequence[tuple[Problem, Evidence]], seed: int, draws: int) -> dict[str, Rule]:
    """The rules whose weights are found on past problems: the paper's, and one that heeds the size of clusters, too.

    Weights are worth the subtasks solved, on average over the number of submissions.
    """

    def worth(weights: Weights) -> float:
        return float(np.mean([curve(*each, Rule(weights)) for each in past]))

    rng = np.random.default_rng(seed)
    return {
        "mean": Rule(random_search(worth, rng, draws)),
        "mean + size": Rule(random_search(worth, rng, draws, (*PENALTIES, "size"))),
    }


def measure(contest: Contest, seed: int, count: int, rules: Mapping[str, Rule]) -> Curves:
    """The curves of all rules over so many problems; of the last also without validators, and without narrowing."""
    found: dict[str, list[np.ndarray]] = {}
    last = rules[name := list(rules)[-1]]
    for problem in islice(problems(contest, seed), count):
        known = problem.evidence()
        for arm, rule in rules.items():
            found.setdefault(arm, []).append(curve(problem, known, rule))
        alone = dataclasses.replace(last, narrows=False)
        found.setdefault(f"{name}, not narrowed", []).append(curve(problem, known, alone))
        found.setdefault(f"{name}, not validated", []).append(curve(problem, problem.evidence(False), last))
    return {arm: np.stack(rows) for arm, rows in found.items()}


def shown(estimate: Estimate) -> str:
    """A value and its interval in words."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def complete(curves: np.ndarray, most: int, subtasks: int) -> Estimate:
    """The share of problems whose subtasks are all solved after so many submissions."""
    return over_examples(curves[:, most] == subtasks)


def claims(found: Mapping[str, Curves]) -> list[tuple[str, Estimate]]:
    """What is to hold, as differences of subtasks solved over the same problems that have to lie above 0."""
    pairs = [
        ("independent", "filter", "random", 6),
        ("independent", "size", "filter", 6),
        ("independent", "mean", "filter", 6),
        ("independent", "mean + size", "filter", 6),
        ("correlated", "scorer", "size", 3),
        ("correlated", "scorer", "majority", 25),
        ("sharp scorer", "mean", "filter", 6),
        ("sharp scorer", "mean", "scorer", 6),
    ]
    return [
        (
            f"{condition}, {most} submissions: {better} > {worse}",
            over_examples(found[condition][better][:, most] - found[condition][worse][:, most]),
        )
        for condition, better, worse, most in pairs
    ]


def study(contest: Contest, seed: int, count: int, past: int, draws: int) -> tuple[Curves, dict[str, Rule]]:
    """The curves of all rules, and those whose weights were found on further problems of the same contest."""
    earlier = [(problem, problem.evidence()) for problem in islice(problems(contest, seed + 1), past)]
    rules = FIXED | searched(earlier, seed, draws)
    return measure(contest, seed, count, rules), rules


def table(found: Mapping[str, Curves], subtasks: int) -> str:
    """Markdown: the share of problems solved whole by submissions, with intervals, and what was to hold."""
    lines = []
    for condition, curves in found.items():
        lines += [f"| {condition} | " + " | ".join(f"{k} submissions" for k in SHOWN) + " | subtasks after 6 |"]
        lines += ["|---" * (len(SHOWN) + 2) + "|"]
        for arm, rows in curves.items():
            shares = " | ".join(shown(complete(rows, k, subtasks)) for k in SHOWN)
            lines.append(f"| {arm} | {shares} | {rows[:, 6].mean():.2f} |")
        lines.append("")
    for claim, gap in claims(found):
        lines.append(f"{'holds' if gap.low > 0 else 'DOES NOT HOLD'}: {claim}: {shown(gap)} subtasks")
    return "\n".join(lines)


def draw(found: Mapping[str, Curves]) -> Any:
    """A matplotlib figure: mean subtasks solved against submissions, a panel for each condition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (condition, curves) in zip(panels, found.items(), strict=True):
        for arm, rows in curves.items():
            style = {"linestyle": "--", "linewidth": 0.9} if "," in arm else {}
            axes.plot(range(1, MOST + 1), rows[:, 1:].mean(0), label=arm, **style)
        axes.set_xscale("log")
        axes.set_xticks(SHOWN, list(map(str, SHOWN)))
        axes.set_title(condition, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("submissions")
        axes.grid(color="0.92")
    panels[0].set_ylabel("subtasks solved, of three")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.clusters`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.clusters", description="Submissions by clusters, on simulated problems."
    )
    flags.add_argument("--problems", type=int, default=300, help="for each condition")
    flags.add_argument("--past", type=int, default=40, help="further problems on which weights are searched")
    flags.add_argument("--draws", type=int, default=60, help="weights drawn in a search")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--output", default="runs/clusters/clusters.png", help="the PNG; the numbers go beside it")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def report() -> None:
        contest = Contest()
        sizes = (options.seed, options.problems, options.past, options.draws)
        both = {name: study(dataclasses.replace(contest, **other), *sizes) for name, other in CONDITIONS.items()}
        found = {name: curves for name, (curves, _) in both.items()}
        print(table(found, contest.subtasks))
        weights = {
            f"{name}, {arm}": dataclasses.asdict(rules[arm].weights)
            for name, (_, rules) in both.items()
            for arm in ("mean", "mean + size")
        }
        print(f"weights: {json.dumps(weights)}")
        picture = Path(options.output)
        picture.parent.mkdir(parents=True, exist_ok=True)
        save(draw(found), picture)
        means = {name: {arm: rows.mean(0).tolist() for arm, rows in curves.items()} for name, curves in found.items()}
        kept = {
            "solved": means,
            "weights": weights,
            "claims": {name: list(map(float, gap)) for name, gap in claims(found)},
        }
        picture.with_suffix(".json").write_text(json.dumps(kept) + "\n")

    return guarded(report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
