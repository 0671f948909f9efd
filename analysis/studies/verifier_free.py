"""Imitating correct traces against choosing by a verifier, on the planted subsequence (2502.12118).

python -m analysis.studies.verifier_free "runs/verifier_free/arms/*"    -> verifier_free.json, .png beside the arms

Verifier-free (VF) are the SFT runs among those given: n correct traces of the base. Verifier-based (VB) has n rollouts
of the base model with their rewards: a verifier is fitted to them by least squares and chooses the best of several
rollouts. GRPO runs learn from n rewarded rollouts by themselves. Beside them stands what is exact: the heterogeneity of
the base, what a perfect imitation of its correct traces earns, and what a perfect verifier chooses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from analysis.pictures import save
from analysis.studies import scripted
from analysis.studies.budget_forcing import folders
from analysis.studies.clusters import shown
from data.sources.prompts import fixed_examples
from data.tasks.planted import BASES, DIGITS, Planted
from infer.load import Loaded, load_run
from infer.sampler import generate
from infer.sampling import SamplingParams
from infer.strategies.estimators import Estimate
from store.run_directory import read_config, read_result
from train.cli import guarded

OTHER = len(DIGITS)  # in place of a token that is no digit
RIDGE = 1.0
EPSILON = 0.25  # of the anti-concentration that is told
DRAWS = 2000  # of runs, for the interval of a slope
COLOURS = {"point": "C0", "low": "C1", "high": "C3", "skewed": "C2"}


class Trained(NamedTuple):
    """A run that was trained: which, and what its answers earned on average."""

    base: str
    horizon: int
    traces: int
    algorithm: str
    seed: int
    origin: str
    earned: float


class Rollouts(NamedTuple):
    """Answers of a base model: the prompts' digits [N, keys], tokens [N, H] (OTHER: no digit), rewards [N, H]."""

    prompts: np.ndarray
    tokens: np.ndarray
    rewards: np.ndarray

    def until(self, horizon: int) -> Rollouts:
        """The same answers, cut."""
        return self._replace(tokens=self.tokens[:, :horizon], rewards=self.rewards[:, :horizon])


def trained_run(folder: str) -> Trained:
    """What a run directory says; ValueError for one of another task."""
    config, earned = read_config(Path(folder)), read_result(Path(folder))["evaluation"]["score"]
    data = config["data"]
    if data["task"] != "planted":
        raise ValueError(f"{folder} is a run of the task {data['task']!r}; this study takes 'planted'")
    options, rl = data["options"], config["algorithm"] == "grpo"
    horizon, traces = options["horizon"], options["train_size"] * (config["rl"]["samples"] if rl else 1)
    named = (options["base"], horizon, traces, config["algorithm"], config["seed"])
    return Trained(*named, config["init_from"], earned * horizon)


def rollouts(run: Loaded, task: Planted, split: str, count: int, samples: int, key: jax.Array) -> Rollouts:
    """So many answers of a model to each of the first prompts of a split, and what their tokens earn."""
    rows = fixed_examples(task, run.tokenizer, split, count)
    sampling = SamplingParams(task.horizon, stop=tuple(run.tokenizer.eos_ids), n=samples)
    found = generate(run.model, run.params, [row["tokens"] for row in rows], key, sampling)
    texts = [run.tokenizer.decode(tokens[:length]) for tokens, length in zip(found.tokens, found.lengths, strict=True)]
    examples = [row["example"] for row in rows for _ in range(samples)]
    earned = np.array([task.earned(example, text) for example, text in zip(examples, texts, strict=True)])
    digits = [
        [DIGITS.find(token) % (OTHER + 1) for token in text[: task.horizon].ljust(task.horizon)] for text in texts
    ]
    prompts = np.array([[int(digit) for digit in example["digits"]] for example in examples])
    return Rollouts(prompts, np.array(digits), (earned[:, None] > np.arange(task.horizon)[::-1]).astype(float))


def ages(tokens: np.ndarray) -> np.ndarray:
    """How many tokens [N, 10] stand from the first occurrence of every digit on in tokens [N, H]; 0 without it."""
    first = [np.where((tokens == digit).any(1), (tokens == digit).argmax(1), tokens.shape[1]) for digit in range(OTHER)]
    return tokens.shape[1] - np.stack(first, 1)


def fit_verifier(seen: Rollouts) -> np.ndarray:
    """The weights [keys, 10, 10] of a linear reward of a prefix, by least squares with a ridge.

    A prefix is described by which digits it has beside each digit of the prompt: weight [i, p, t] counts where digit i
    of the prompt is p and t has occurred. There is a constant, too, which chooses nothing and is left out.
    """
    count, horizon = seen.tokens.shape
    keys = seen.prompts.shape[1]
    occurred = ages(seen.tokens)[:, None] > np.arange(horizon)[::-1, None]
    features = np.zeros((count, horizon, keys, OTHER, OTHER), np.float32)
    for place in range(keys):
        features[np.arange(count), :, place, seen.prompts[:, place]] = occurred
    table = np.concatenate([features.reshape(count * horizon, -1), np.ones((count * horizon, 1), np.float32)], 1)
    square = table.T @ table + RIDGE * np.eye(table.shape[1])
    weights = np.linalg.solve(square, table.T @ seen.rewards.reshape(-1))
    return np.asarray(weights[:-1]).reshape(keys, OTHER, OTHER)


def predicted(weights: np.ndarray, asked: Rollouts) -> np.ndarray:
    """The sum of rewards [N] that a verifier expects of answers, up to what is the same for all."""
    places = np.arange(asked.prompts.shape[1])
    return np.einsum("nkt,nt->n", weights[places, asked.prompts], ages(asked.tokens).astype(float))


def chosen(scores: np.ndarray, asked: Rollouts, samples: int) -> float:
    """What the best of `samples` answers to each prompt by their scores [N] earns, on average."""
    best = scores.reshape(-1, samples).argmax(1)
    return float(asked.rewards.sum(1).reshape(-1, samples)[np.arange(len(best)), best].mean())


def exact(base: str, horizon: int, keys: int, samples: int) -> dict[str, float]:
    """What is known of a base without a sample."""
    styles = BASES[base]
    probabilities = scripted.returns(styles, horizon, keys)
    return {
        "sigma": float(np.sqrt(scripted.heterogeneity(styles, horizon, keys))),
        "anti-concentration": scripted.anti_concentration(probabilities, EPSILON),
        "base, exact": scripted.mean(probabilities),
        "VF, exact": scripted.of_correct(probabilities),
        "VB, exact": scripted.best_of(probabilities, samples),
    }


def sampled(arms: Sequence[Trained], prompts: int, samples: int) -> dict[tuple[str, int, int, int], dict[str, float]]:
    """For every base, horizon, number of traces and seed: what the base model and the best of its answers earn."""
    found = {}
    for base, seed in sorted({(arm.base, arm.seed) for arm in arms}):
        own = [arm for arm in arms if (arm.base, arm.seed) == (base, seed)]
        run, longest = load_run(own[0].origin), max(arm.horizon for arm in own)
        task = Planted(horizon=longest, base=base, seed=seed)
        keys = jax.random.split(jax.random.key(seed))
        seen = rollouts(run, task, "train", max(arm.traces for arm in own), 1, keys[0])
        asked = rollouts(run, task, "test", prompts, samples, keys[1])
        for horizon, traces in sorted({(arm.horizon, arm.traces) for arm in own}):
            known = Rollouts(*(each[:traces] for each in seen)).until(horizon)
            cut = asked.until(horizon)
            earned = cut.rewards.sum(1)
            found[base, horizon, traces, seed] = {
                "sampled": float(earned.mean()),
                "sampled sigma": float(np.sqrt(earned.reshape(-1, samples).var(1, ddof=1).mean())),
                "VB": chosen(predicted(fit_verifier(known), cut), cut, samples),
                "best": chosen(earned, cut, samples),
            }
    return found


def study(arms: Sequence[Trained], prompts: int, samples: int) -> list[dict[str, Any]]:
    """A row for each base, horizon and number of traces; what was measured is a list over seeds."""
    measured: dict[tuple[str, int, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (*where, seed), values in sampled(arms, prompts, samples).items():
        same = [arm for arm in arms if [arm.base, arm.horizon, arm.traces, arm.seed] == [*where, seed]]
        trained = {{"sft": "VF", "grpo": "GRPO"}[arm.algorithm]: arm.earned for arm in same}
        for name, value in (values | trained).items():
            measured[tuple(where)][name].append(value)  # type: ignore[index]
    rows = []
    for (base, horizon, traces), lists in sorted(measured.items()):
        known = exact(base, horizon, Planted.keys, samples)
        gap = (np.array(lists["VB"]) - np.array(lists["VF"])).tolist()
        rows.append({"base": base, "horizon": horizon, "traces": traces, **known, **lists, "gap": gap})
    return rows


def diagonal(rows: Iterable[Mapping[str, Any]], base: str) -> list[Mapping[str, Any]]:
    """The rows of a base, by horizon, whose traces are to it as those of the longest are."""
    own = [row for row in rows if row["base"] == base]
    longest = max(own, key=lambda row: row["horizon"])
    share = longest["traces"] / longest["horizon"]
    return sorted((row for row in own if row["traces"] == share * row["horizon"]), key=lambda row: row["horizon"])


def slope(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Estimate:
    """The slope of the least-squares line through y [runs, N] over x [N]; its interval by drawing runs with
    replacement.
    """
    drawn = y[rng.integers(len(y), size=(DRAWS, len(y)))].mean(1)
    slopes = np.polyfit(x, np.vstack([y.mean(0), drawn]).T, 1)[0]
    return Estimate(slopes[0], *np.quantile(slopes[1:], (0.025, 0.975)))


def slopes(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Estimate]:
    """The exponent of the horizon in the gap of each base whose gaps are all positive, and of the exact one."""
    found = {}
    for base in dict.fromkeys(row["base"] for row in rows):
        own = diagonal(rows, base)
        x = np.log([row["horizon"] for row in own])
        gaps = {base: np.array([row["gap"] for row in own]).T}
        gaps[f"{base}, exact"] = np.array([[row["VB, exact"] - row["VF, exact"] for row in own]])
        for name, gap in gaps.items():
            if len(own) > 1 and (gap > 0).all():
                found[name] = slope(x, np.log(gap), rng)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def table(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Estimate]) -> str:
    """Markdown: exact values, then what was measured, means and deviations over seeds; then the slopes."""
    known = ("sigma", "anti-concentration", "base, exact", "VF, exact", "VB, exact")
    measured = ("sampled sigma", "sampled", "VF", "VB", "best", "GRPO", "gap")
    heads = ("base", "H", "n", *known, *measured)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["base"], str(row["horizon"]), str(row["traces"]), *(f"{row[name]:.2f}" for name in known)]
        cells += [spread(row[name]) if name in row else "" for name in measured]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"exponent of the horizon in the gap, {name}: {shown(interval)}" for name, interval in found.items()]
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A matplotlib figure: the gap against the horizon, exact ones dashed, and against the heterogeneity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for base in dict.fromkeys(row["base"] for row in rows):
        own = diagonal(rows, base)
        gaps = np.array([row["gap"] for row in own])
        for axes, name in zip(panels, ("horizon", "sigma"), strict=True):
            x = [row[name] for row in own]
            axes.errorbar(x, gaps.mean(1), gaps.std(1), marker="o", markersize=4, color=COLOURS[base], label=base)
            ideal = [row["VB, exact"] - row["VF, exact"] for row in own]
            axes.plot(x, ideal, linestyle="--", linewidth=0.9, color=COLOURS[base])
    for axes, name in zip(panels, ("horizon H (n = 8 H traces)", "heterogeneity of the base, sigma"), strict=True):
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel(name)
        axes.grid(color="0.92")
    panels[0].set_title("return of VB less that of VF", loc="left", fontsize=10, fontweight="bold")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.verifier_free`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.verifier_free", description="Imitation of correct traces against a verifier."
    )
    flags.add_argument("runs", nargs="+", help="run directories of configs/ablations/verifier_free.py, or patterns")
    flags.add_argument("--prompts", type=int, default=500, help="asked of the base model")
    flags.add_argument("--samples", type=int, default=8, help="answers to each, of which the verifier chooses one")
    flags.add_argument("--output", default="", help="the PNG; by default beside the runs")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def report() -> None:
        runs = folders(options.runs)
        rows = study([trained_run(str(folder)) for folder in runs], options.prompts, options.samples)
        found = slopes(rows, np.random.default_rng(0))
        print(table(rows, found))
        picture = Path(options.output or runs[0].parent.parent / "verifier_free.png")
        save(draw(rows), picture)
        kept = {"rows": rows, "slopes": {name: list(map(float, interval)) for name, interval in found.items()}}
        picture.with_suffix(".json").write_text(json.dumps(kept) + "\n")

    return guarded(report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
