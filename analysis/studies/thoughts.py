"""Whether a continuous thought holds what the written step holds in whose place it stands, by mutual neighbours.

python -m analysis.studies.thoughts runs/coconut_prosqa/coconut,seed=?     -> alignment.json, alignment.png in the first

One side is what is fed back as the thoughts of step j, the other the mean state over the tokens of the written step j,
layer by layer, of the same problems and the same model. Compared are the written step of the same number, the other
steps, and the same maximum over layers where the problems of one side are shuffled; with and without what is linear in
the question (how often each character stands in it, and its last three), for the model and for fresh weights.

Source: the measure is that of 2405.07987, the thoughts those of Coconut (2412.06769).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from analysis.alignment import Measure, permutation_test
from analysis.lens import layers_of_stack
from analysis.pictures import save
from analysis.probes import pool
from data.sources.batch import TokenRows
from data.sources.thoughts import check_reasoning, encode_chain, markers_of
from data.tasks.base import examples_of
from data.thoughts import Chain, Curriculum, Markers, thought_batch
from infer.feedback import feedback_of
from infer.load import Loaded, load_run
from model.latent import Columns, think
from model.lm import Model, Params
from settings.data import SoftConfig
from train.cli import guarded

LAST = 3  # characters at the end of a question that count by their places


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problems of one run: their `chains`, the run's `curriculum` and `markers`, and `questions` [N, Q], what is known
    of the question alone.
    """

    chains: tuple[Chain, ...]
    curriculum: Curriculum
    markers: Markers
    questions: np.ndarray

    @property
    def steps(self) -> int:
        """How many steps have thoughts in their place."""
        return self.curriculum.max_stage


class Row(NamedTuple):
    """One comparison: thoughts of one step (from 1 on) with a written step, what of the question was left in (`whole`)
    or taken out (`beyond`), the best score of each layer of the written step, the largest of them, that of shuffled
    problems on average, and p.
    """

    model: str
    question: str
    thought: int
    step: int
    layers: list[float]
    score: float
    shuffled: float
    p: float


def problems(run: Loaded, split: str, count: int) -> Problems:
    """The first problems of a split; ValueError for a run without thoughts, and for too few steps to compare."""
    if not run.ending.thoughts:
        raise ValueError("this run has no thoughts: give runs of algorithm coconut whose method feeds thoughts back")
    task, data, settings = run.task(), run.config["data"], run.config["thoughts"]
    check_reasoning(task)
    markers, each = markers_of(run.tokenizer), settings["thoughts_per_step"]
    marked = markers.start in run.ending.tokens
    examples = list(examples_of(task, split)[:count])
    rendering = (data["template"], data["system"] or None)
    chains = tuple(encode_chain(task, run.tokenizer, example, *rendering) for example in examples)  # type: ignore[arg-type]
    steps = min(run.ending.thoughts // each, *(len(chain.steps) for chain in chains))
    if steps < 2:
        raise ValueError(f"{steps} step of every problem has thoughts in its place: there is no other to compare with")
    curriculum = Curriculum("coconut", thoughts_per_step=each, max_stage=run.ending.thoughts // each, markers=marked)
    return Problems(chains, curriculum, markers, question_features([task.prompt(example) for example in examples]))


def question_features(texts: Sequence[str], last: int = LAST) -> np.ndarray:
    """How often each character stands in a text and which are the last: [N, Q], without what is alike in all."""
    letters = sorted(set("".join(texts)))
    counts = [[text.count(letter) for letter in letters] for text in texts]
    ends = [[text[-i] == letter for i in range(1, last + 1) for letter in letters] for text in texts]
    table = np.concatenate([np.array(counts, float), np.array(ends, float)], 1)
    return table[:, (table != table[:1]).any(0)]


def thoughts_of(run: Loaded, params: Params, asked: Problems) -> np.ndarray:
    """What is fed back after each question: [steps, N, thoughts of a step, D]."""
    stage = asked.curriculum.last_stage
    batch = thought_batch(asked.chains, asked.curriculum, asked.markers, stage)
    thoughts, first = int(batch.latent.sum(1).max()), int(batch.latent.argmax(1).max())
    fed = np.asarray(_fed(run.model, params, batch, thoughts, first, run.ending.soft))
    return np.moveaxis(fed.reshape(len(fed), -1, asked.curriculum.thoughts_per_step, fed.shape[-1]), 1, 0)


@partial(jax.jit, static_argnames=("model", "thoughts", "first", "soft"))
def _fed(
    model: Model, params: Params, batch: TokenRows, thoughts: int, first: int, soft: SoftConfig | None
) -> jax.Array:
    columns = Columns(batch.tokens, batch.positions, batch.segments, batch.latent)
    feedback = feedback_of(model, params, soft)
    places: dict[str, Any] = {"thoughts": thoughts, "first": first}
    out = think(model, params, columns, **places, feedback=feedback, capture=("thoughts",), **_depth(model))
    return out.captured["thoughts"]


def _depth(model: Model) -> dict[str, Any]:
    """The iterations of a recurrent model."""
    return {"depth": model.config.recurrent.mean} if model.config.depth == "recurrent" else {}


def written(run: Loaded, params: Params, asked: Problems) -> list[list[np.ndarray]]:
    """The mean state over the tokens of each written step, for each step the layers: [N, D] each.

    Layers are the embedding, the residual stream after each layer, and the final norm.
    """
    batch = thought_batch(asked.chains, asked.curriculum, asked.markers, 0)
    layers = np.asarray(_layers(run.model, params, batch))
    start = [len(chain.question) + 2 * asked.curriculum.markers for chain in asked.chains]
    masks = []
    for step in range(asked.steps):
        mask = np.zeros(batch.tokens.shape, bool)
        for row, chain in enumerate(asked.chains):
            begin = start[row] + sum(map(len, chain.steps[:step]))
            mask[row, begin : begin + len(chain.steps[step])] = True
        masks.append(mask)
    return [[pool(layer, mask) for layer in layers] for mask in masks]


@partial(jax.jit, static_argnames="model")
def _layers(model: Model, params: Params, batch: TokenRows) -> jax.Array:
    names = ("embedding", "residual", "final_norm")
    rows = (batch.tokens, batch.positions, batch.segments)
    captured = model.apply(params, *rows, capture=names, **_depth(model)).captured
    ends = (captured["embedding"][None], captured["final_norm"][None])
    return jax.numpy.concatenate([ends[0], layers_of_stack(captured), ends[1]])


def compare(
    thoughts: np.ndarray,
    steps: Sequence[Sequence[np.ndarray]],
    questions: np.ndarray,
    k: int,
    permutations: int,
    model: str = "trained",
) -> list[Row]:
    """Every thought [steps, N, c, D] with every written step, with the question left in and taken out."""
    rows, measure = [], Measure(k=k)
    for (j, side), (i, layers) in itertools.product(enumerate(thoughts, 1), enumerate(steps, 1)):
        for name, covariates in (("whole", None), ("beyond", questions)):
            key = jax.random.key(j)
            test = permutation_test(side, list(layers), key, measure, permutations=permutations, covariates=covariates)
            found = test.alignment
            rows.append(Row(model, name, j, i, found.scores.max(0).tolist(), found.score, test.mean, test.p))
    return rows


def study(run: Loaded, options: argparse.Namespace) -> list[Row]:
    """The comparisons of one run, and of fresh weights of its shape and seed."""
    asked = problems(run, options.split, options.examples)
    start = jax.jit(run.model.init)(jax.random.key(int(run.config.get("seed", 0))))
    rows = []
    for name, params in (("before training", start), ("trained", run.params)):
        sides = thoughts_of(run, params, asked), written(run, params, asked)
        rows += compare(*sides, asked.questions, options.k, options.permutations, name)
    return rows


def kinds_of(rows: Sequence[Row], model: str, question: str) -> dict[str, float]:
    """The mean scores of thoughts with the same step, the next one, the one before, and the same of other problems."""
    own = [row for row in rows if (row.model, row.question) == (model, question)]
    mean = lambda offset: float(np.mean([row.score for row in own if row.step - row.thought == offset]))  # noqa: E731
    shuffled = float(np.mean([row.shuffled for row in own if row.step == row.thought]))
    return {"same step": mean(0), "next step": mean(1), "step before": mean(-1), "shuffled problems": shuffled}


def draw(runs: Sequence[Sequence[Row]]) -> Any:
    """A matplotlib figure: scores of kinds of pairs, before and after training, with the question left in and out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.4), dpi=140, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (question, title) in zip(
        panels, (("whole", "as they are"), ("beyond", "question taken out")), strict=True
    ):
        for place, model in enumerate(("before training", "trained")):
            kinds = [kinds_of(rows, model, question) for rows in runs]
            for number, name in enumerate(kinds[0]):
                values = [each[name] for each in kinds]
                x = place + 0.21 * (number - 1.5)
                axes.bar(x, np.mean(values), 0.19, color=f"C{number}", label=name if not place else None)
                axes.plot([x] * len(values), values, ".", color="black", markersize=4)
        axes.set_xticks((0, 1), ("before training", "trained"))
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.grid(color="0.92", axis="y")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("mutual nearest neighbours")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def table(runs: Sequence[Sequence[Row]]) -> str:
    """The rows, one line for each comparison, with mean and deviation over runs, and the p values of all."""
    lines = []
    for same in zip(*runs, strict=True):
        scores, nulls = (np.array([getattr(row, name) for row in same]) for name in ("score", "shuffled"))
        spread = scores.std(ddof=1) if len(scores) > 1 else 0.0
        first = same[0]
        lines.append(
            f"{first.model:16}{first.question:7} thought {first.thought}, step {first.step}: {scores.mean():.3f}"
            f" ± {spread:.3f}, shuffled {nulls.mean():.3f}, p {[round(row.p, 3) for row in same]},"
            f" layers {np.mean([row.layers for row in same], 0).round(2).tolist()}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.thoughts`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.thoughts", description="Thoughts beside the written steps they replace."
    )
    flags.add_argument("runs", nargs="+", help="run directories of one config, such as a sweep's seeds")
    flags.add_argument("--examples", type=int, default=256, help="problems compared")
    flags.add_argument("--split", default="test", help="of the run's task")
    flags.add_argument("--k", type=int, default=10, help="neighbours")
    flags.add_argument("--permutations", type=int, default=200, help="orders of shuffled problems")
    flags.add_argument("--output", default="", help="the PNG; by default in the first run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def measure() -> None:
        runs = [study(load_run(folder), options) for folder in options.runs]
        print(table(runs))
        picture = Path(options.output or Path(options.runs[0]) / "alignment.png")
        save(draw(runs), picture)
        rows = [[row._asdict() for row in each] for each in runs]
        picture.with_suffix(".json").write_text(json.dumps(rows) + "\n")

    return guarded(measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
