"""After which iteration of a recurrent core the rows of the automaton can be read from its states, by linear probes.

python -m analysis.studies.iterations runs/probe_automaton/seed=?     -> iterations.json, iterations.png in the first

Every row is asked for the most steps of the task. A probe is fitted to rows that the model was trained on and measured
on rows that it was not; bit c after k steps is looked for in the column of bit c, in the one behind it, and in the one
that writes bit c of the answer. One probe serves all bits looked at, by default the right half of the row, where a bit
depends on the most others. Controls: shuffled labels, the model before its training, the bits to the left alone
(what is linear in the question), and the same rows asked for a single step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.lens import layers_of_stack
from analysis.pictures import save
from analysis.probes import (
    Plan,
    accuracy,
    collect,
    head2toe,
    largest_coefficient,
    normalised,
    predict_each,
)
from data.sources.text import sft_tokens
from data.tasks.base import examples_of
from infer.load import Loaded, load_run
from model.lm import Model, Params
from train.cli import guarded

PLACES = ("question", "behind", "answer")
LINEAR = Plan(steps=300)
SHARE, PENALTY = 0.05, 0.1  # Head2Toe's: of the features, and of the penalty from which on it keeps none
HELD = 0.9  # a state holds a step from this accuracy on; the step before alone gives .75


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a model holds: `states` [states, places, N, bits, D] with their `names`, and `rows` [steps + 1, N, bits].

    `rows[k]`: the bits after k steps, 0 or 1.
    """

    names: tuple[str, ...]
    states: np.ndarray
    rows: np.ndarray


def distinct_rows(run: Loaded, splits: Sequence[str], most: int) -> list[str]:
    """At most so many different rows of the run's automaton, in the order in which its splits have them.

    Raises ValueError for a run of another task.
    """
    if run.config["data"]["task"] != "automaton":
        raise ValueError(f"the run is of the task {run.config['data']['task']!r}; this study takes 'automaton'")
    task, kept = run.task(), dict[str, None]()
    for split in splits:
        examples = examples_of(task, split)
        for i in range(min(len(examples), 20 * most)):
            kept[examples[i]["row"]] = None
            if len(kept) == most:
                return list(kept)
    return list(kept)


def state_names(model: Model, depth: int) -> list[str]:
    """The names of the states looked at: the embedding, layers, and iterations in the place of the core's layers.

    Raises ValueError for a plain stack.
    """
    if model.config.depth != "recurrent":
        raise ValueError("this model is a plain stack: it has no iterations to look into")
    before, after = model.config.recurrent.prelude, model.config.recurrent.coda
    layers = model.config.n_layers
    names = [f"layer {i}" for i in range(before)] + [f"iteration {i + 1}" for i in range(depth)]
    return ["embedding", *names, *[f"layer {i}" for i in range(layers - after, layers)]]


def look(run: Loaded, params: Params, rows: Sequence[str], steps: int, bits: Sequence[int], depth: int) -> Seen:
    """The states of `depth` iterations over rows that ask for `steps`, in the columns of some bits.

    Raises ValueError for a plain stack, and where a character is not one token.
    """
    task, data, names = run.task(), run.config["data"], state_names(run.model, depth)
    examples = [{"row": row, "steps": steps} for row in rows]
    rendering = (data["template"], data["system"] or None)
    texts = [sft_tokens(task, run.tokenizer, example, *rendering) for example in examples]
    prompt = task.prompt(examples[0])
    if len(texts[0][0]) != len(prompt):
        raise ValueError(f"{prompt!r} takes {len(texts[0][0])} tokens: this study needs one for each character")
    tokens = jnp.asarray([[*asked, *answer] for asked, answer in texts], jnp.int32)
    own = prompt.index(rows[0]) + np.asarray(bits)
    columns = np.stack([own, own + 1, len(prompt) - 1 + np.asarray(bits)])
    most = max(steps, run_steps(run))
    after = [rows, *([task.target({"row": row, "steps": k}) for row in rows] for k in range(1, most + 1))]
    table = np.array([[[int(row[c]) for c in bits] for row in each] for each in after])
    states = np.asarray(captured_states(run.model, params, tokens, depth))[:, :, columns]
    return Seen(tuple(names), np.moveaxis(states, 2, 1), table)


def run_steps(run: Loaded) -> int:
    """The most steps that the run's task asks for."""
    return int(run.config["data"]["options"].get("max_steps", 4))


@partial(jax.jit, static_argnames=("model", "depth"))
def captured_states(model: Model, params: Params, tokens: jax.Array, depth: int) -> jax.Array:
    """Every state of the residual stream over tokens [N, S], in the order of `state_names`: [states, N, S, D]."""
    captured = model.apply(params, tokens, depth=depth, capture=("embedding", "residual")).captured
    return jnp.concatenate([captured["embedding"][None], layers_of_stack(captured)])


def bits_alone(rows: Sequence[str], bits: Sequence[int], table: np.ndarray) -> Seen:
    """In place of states what stands at each bit and left of it, ±1, and 0 outside; `table`: as `Seen.rows`."""
    signs = np.array([[2.0 * int(bit) - 1 for bit in row] for row in rows])
    padded = np.pad(signs, ((0, 0), (signs.shape[1] - 1, 0)))
    left = np.stack([padded[:, c : c + signs.shape[1]] for c in bits], 1)
    return Seen(("bits",), left[None, None], table)


def flat(seen: Seen, place: int) -> np.ndarray:
    """The states of one place as examples, one for each row and bit: [states, N * bits, D]."""
    return seen.states[:, place].reshape(len(seen.names), -1, seen.states.shape[-1])


def readable(fitted: Seen, measured: Seen, shuffles: int = 0) -> np.ndarray:
    """The share of rows of `measured` in which a probe fitted to `fitted` reads a bit right.

    [places, steps + 1, states, bits]. `shuffles`: so many times, and on average, the fitted labels change places.
    """
    steps, count, bits = measured.rows.shape
    rng, labels = np.random.default_rng(0), fitted.rows.reshape(steps, -1)
    shuffled = [rng.permuted(labels, axis=1) for _ in range(shuffles)]
    sets, right = np.concatenate(shuffled or [labels]), []
    for place in range(fitted.states.shape[1]):
        said = predict_each(flat(fitted, place), sets, flat(measured, place), LINEAR, classes=2)
        said = said.reshape(len(fitted.names), -1, steps, count, bits)
        right.append((said == measured.rows).mean((1, 3)).swapaxes(0, 1))
    return np.stack(right)


def selected(fitted: Seen, measured: Seen, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Head2Toe on all states of one place.

    Returns its accuracies [steps + 1] and the share of each state among the features kept [steps + 1, states].
    """
    features, asked = (collect(dict(zip(x.names, flat(x, place), strict=True))) for x in (fitted, measured))
    table = normalised(features.values, features.layer_of, len(fitted.names))
    accuracies, shares = [], []
    for labels, wanted in zip(fitted.rows, measured.rows, strict=True):
        penalty = PENALTY * largest_coefficient(table, labels.ravel(), 2)
        probe = head2toe(features, labels.ravel(), Plan(SHARE, penalty, steps=LINEAR.steps), classes=2)
        accuracies.append(accuracy(probe, asked, wanted.ravel()))
        shares.append([share.share for share in probe.layer_shares])
    return np.array(accuracies), np.array(shares)


def held_from(right: np.ndarray, names: Sequence[str]) -> list[str]:
    """For each step of accuracies [steps, states] the first state that holds it, or "never"."""
    held = right >= HELD
    return [names[int(row.argmax())] if row.any() else "never" for row in held]


def study(run: Loaded, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured of one run, by name; arrays [places, steps + 1, states] are means over bits."""
    width, steps, depth = run.config["data"]["options"]["width"], run_steps(run), options.depth
    depth = depth or run.model.config.recurrent.mean
    bits = range(width // 2 if options.from_bit is None else options.from_bit, width)
    taught = distinct_rows(run, ["train"], options.rows)
    others = distinct_rows(run, ["test", "valid"], options.rows)
    start = jax.jit(run.model.init)(jax.random.key(int(run.config.get("seed", 0))))

    def pair(params: Params, asked: int) -> tuple[Seen, Seen]:
        return look(run, params, taught, asked, bits, depth), look(run, params, others, asked, bits, depth)

    fitted, measured = pair(run.params, steps)
    whole = readable(fitted, measured)
    alone = readable(bits_alone(taught, bits, fitted.rows), bits_alone(others, bits, measured.rows))
    kept, shares = selected(fitted, measured)
    return {
        "states": fitted.names,
        "rows": [len(taught), len(others)],
        "bits": list(bits),
        "trained": whole.mean(-1),
        "by bit": whole,
        "one step asked": readable(*pair(run.params, 1)).mean(-1),
        "before training": readable(*pair(start, steps)).mean(-1),
        "shuffled labels": readable(fitted, measured, shuffles=5).mean(-1),
        "bits alone": alone.mean(-1)[0, :, 0],
        "head2toe": kept,
        "head2toe shares": shares,
    }


def draw(names: Sequence[str], trained: np.ndarray, before: np.ndarray) -> Any:
    """A matplotlib figure of accuracies [places, steps, states]: a line for each step, dashed before training."""
    from matplotlib.figure import Figure

    titles = ("in the bit's own column", "in the column behind it", "where the answer writes it")
    figure = Figure(figsize=(11, 3.6), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(PLACES), sharey=True)
    ticks = [name.replace("embedding", "emb").replace("iteration ", "").replace("layer ", "L") for name in names]
    for place, axes in enumerate(panels):
        for step in range(trained.shape[1]):
            (line,) = axes.plot(ticks, trained[place, step], marker="o", markersize=3, label=f"after {step} steps")
            axes.plot(ticks, before[place, step], linestyle="--", linewidth=0.8, color=line.get_color())
        axes.set_title(titles[place], loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("state: embedding, layer, iterations, layer")
        axes.grid(color="0.92")
    panels[0].set_ylabel("bits read right (dashed: before training)")
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """What is said of several runs: accuracies by place and step with deviations, and controls."""
    names = found[0]["states"]
    stack = {key: np.stack([run[key] for run in found]) for key in found[0] if key not in ("states", "rows", "bits")}
    lines = [f"rows fitted to, measured: {[run['rows'] for run in found]}; bits {found[0]['bits']}"]
    for place, where in enumerate(PLACES):
        lines.append(f"{where}: {', '.join(names)}")
        for step in range(stack["trained"].shape[2]):
            mean, spread = (reduce(stack["trained"][:, place, step], axis=0) for reduce in (np.mean, _deviation))
            lines.append(f"  step {step}: " + " ".join(f"{m:.2f}±{d:.2f}" for m, d in zip(mean, spread, strict=True)))
            for control in ("one step asked", "before training", "shuffled labels"):
                values = stack[control][:, place, step].mean(0)
                lines.append(f"    {control:16}" + " ".join(f"{v:.2f}     " for v in values))
        lines.append(f"  held from: {[held_from(run['trained'][place], names) for run in found]}")
    lines.append(f"bits alone, by step: {stack['bits alone'].mean(0).round(3).tolist()}")
    lines.append(f"head2toe, by step: {stack['head2toe'].mean(0).round(3).tolist()}; its shares:")
    lines += [f"  step {k}: {row.round(2).tolist()}" for k, row in enumerate(stack["head2toe shares"].mean(0))]
    return "\n".join(lines)


def _deviation(values: np.ndarray, axis: int) -> np.ndarray:
    """The deviation over runs, 0 of a single one."""
    return values.std(axis, ddof=1) if values.shape[axis] > 1 else np.zeros(values.shape[1:])


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.iterations`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.iterations", description="Which iteration holds which row of the automaton."
    )
    flags.add_argument("runs", nargs="+", help="run directories of one config, such as a sweep's seeds")
    flags.add_argument("--rows", type=int, default=512, help="at most so many to fit to, and so many to measure on")
    flags.add_argument("--from_bit", type=int, help="the first bit looked at; by default the right half is")
    flags.add_argument("--depth", type=int, default=0, help="iterations; 0: the mean of training")
    flags.add_argument("--output", default="", help="the PNG; by default in the first run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def measure() -> None:
        found = [study(load_run(folder), options) for folder in options.runs]
        print(table(found))
        trained, before = (np.mean([run[key] for run in found], 0) for key in ("trained", "before training"))
        picture = Path(options.output or Path(options.runs[0]) / "iterations.png")
        save(draw(found[0]["states"], trained, before), picture)
        rows = [{key: np.asarray(value).tolist() for key, value in run.items()} for run in found]
        picture.with_suffix(".json").write_text(json.dumps(rows) + "\n")

    return guarded(measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
