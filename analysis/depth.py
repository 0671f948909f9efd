"""How long a recurrent model thinks, token by token, and what its depth is worth, as pictures.

python -m analysis.depth --run=runs/depth --prompt "123+456=" --exit=kl      -> depth.png, a heat map over the text
python -m analysis.depth --accuracy runs/depth runs/depth_1 runs/depth_2    -> accuracy.png, accuracy against iterations
python -m analysis.depth --accuracy runs/dial --by=steps                    the same, a line for each value of eval.by
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from analysis.pictures import Labels, heat_map, save, shown
from data.tokenizers.decoding import token_texts
from infer.load import load_run
from infer.recurrence import Recurrence
from infer.sampler import generate
from infer.sampling import SamplingParams
from model.depth import CRITERIA, Exit
from model.lm import Model, Params
from store.records import read_metrics
from store.terminal import visible
from train.cli import guarded

COLUMNS = 32  # tokens in a line of the heat map
AT_DEPTH = r"eval/accuracy{}_at_depth_(\d+)"


class Line(NamedTuple):
    """What a model wrote after a prompt: the label, the text of each token and the iterations spent on it."""

    label: str
    texts: Sequence[str]
    depths: Sequence[int]


def token_depths(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    depth: int | None = None,
    exit: Exit | None = None,
    stop: Sequence[int] = (),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Greedy tokens after each prompt and the iterations spent on them: two int arrays [T] a prompt.

    Raises ValueError for a plain stack, whose tokens all take the same.
    """
    sampling = SamplingParams(max_new_tokens, temperature=0.0, stop=tuple(stop))
    rollout = generate(model, params, prompts, jax.random.key(0), sampling, recurrence=Recurrence(depth, exit=exit))
    if rollout.depth is None:
        raise ValueError("this model is a plain stack: every token takes all its layers")
    return [(rollout.tokens[n, :size], rollout.depth[n, :size]) for n, size in enumerate(rollout.lengths)]


def wrapped(line: Line) -> list[Line]:
    """A line cut into pieces of `COLUMNS` tokens, of which the first bears the label."""
    starts = range(0, max(len(line.texts), 1), COLUMNS)
    cut = lambda x, start: x[start : start + COLUMNS]  # noqa: E731
    return [Line("" if start else line.label, cut(line.texts, start), cut(line.depths, start)) for start in starts]


def draw_depths(lines: Sequence[Line], title: str = "") -> Any:
    """A matplotlib figure: tokens in reading order, each coloured by the iterations spent on it."""
    rows = [piece for line in lines for piece in wrapped(line)]
    width, most = max(len(row.texts) for row in rows), max(max(row.depths, default=1) for row in rows)
    grid = np.full((len(rows), width), np.nan)
    for cells, row in zip(grid, rows, strict=True):
        cells[: len(row.depths)] = row.depths
    labels = Labels([row.label for row in rows], title=title, bar="iterations", low=1, high=most)
    return heat_map(grid, [row.texts for row in rows], labels)


def accuracy_by_depth(folder: Path, by: str = "") -> dict[str, dict[int, float]]:
    """The last accuracies at each of `eval.depths`: {line: {r: accuracy}}.

    The lines are the stages of a pipeline (or the one run), or with `by` the values of that field in one run. Raises
    ValueError where there are none, or several stages and a field.
    """
    named = re.compile(AT_DEPTH.format(f"_{re.escape(by)}_(.+)" if by else "()"))
    found: dict[str, dict[int, float]] = {}
    files = sorted(folder.glob("**/metrics.jsonl"))
    if by and len(files) > 1:
        raise ValueError(f"--by takes the directory of one stage: {', '.join(str(file.parent) for file in files)}")
    for metrics in files:
        for record in read_metrics(metrics.parent):
            for match, value in ((named.fullmatch(key), value) for key, value in record.items()):
                if match:
                    line = f"{by} {match[1]}" if by else metrics.parent.name
                    found.setdefault(line, {})[int(match[2])] = float(value)
    if not found:
        asked = f" and --config.eval.by={by}" if by else ""
        raise ValueError(f"{folder} holds no such accuracies: train with --config.eval.depths=1,2,4,8{asked}")
    return found


def draw_accuracy(runs: Sequence[dict[str, dict[int, float]]]) -> Any:
    """A matplotlib figure: accuracy against iterations, a line per stage, the mean and the range over runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), dpi=140, layout="constrained")
    axes = figure.subplots()
    for stage in dict.fromkeys(name for run in runs for name in run):
        curves = [run[stage] for run in runs if stage in run]
        depths = sorted(set.intersection(*(set(curve) for curve in curves)))
        table = np.array([[curve[depth] for depth in depths] for curve in curves])
        (line,) = axes.plot(depths, table.mean(0), marker="o", label=stage)
        axes.fill_between(depths, table.min(0), table.max(0), color=line.get_color(), alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")  # the usual labels are TeX, which pictures here show as it is
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("iterations of the core when answering")
    axes.set_title("accuracy", loc="left", fontsize=10, fontweight="bold")
    axes.grid(color="0.92")
    axes.legend(frameon=False)
    return figure


def draw_run(options: argparse.Namespace) -> None:
    """The heat map of what a run's model answers."""
    run = load_run(options.run)
    room = run.model.config.max_length
    exit = Exit(options.exit, options.threshold or None) if options.exit else None
    prompts = [run.tokenizer.encode(prompt) for prompt in options.prompt]
    answers = token_depths(
        run.model,
        run.params,
        prompts,
        max_new_tokens=min(options.max_new_tokens, room - max(map(len, prompts))),
        depth=options.depth or None,
        exit=exit,
        stop=run.tokenizer.eos_ids,
    )
    lines = []
    for prompt, asked, (tokens, depths) in zip(options.prompt, prompts, answers, strict=True):
        lines.append(Line(prompt, token_texts(tokens.tolist(), run.tokenizer, asked), depths.tolist()))
        told = " ".join(f"{shown(text)}:{depth}" for text, depth in zip(*lines[-1][1:], strict=True))
        print(visible(f"{prompt} {told}"))
    mean = np.concatenate([depths for _, depths in answers]).mean()
    title = f"mean {mean:.1f} of at most {options.depth or run.model.config.recurrent.mean}"
    save(draw_depths(lines, title), Path(options.output or Path(options.run) / "depth.png"))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.depth`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.depth", description="What a recurrent model's depth is spent on."
    )
    flags.add_argument("--run", help="a run directory, for the heat map of one prompt")
    flags.add_argument("--prompt", nargs="+", default=[], help="what the run's model is asked")
    flags.add_argument("--depth", type=int, default=0, help="at most so many iterations; 0: the model's mean")
    flags.add_argument("--exit", default="", help=f"leave early by one of {', '.join(CRITERIA)}")
    flags.add_argument("--threshold", type=float, default=0.0, help="of the criterion; 0: its usual one")
    flags.add_argument("--max_new_tokens", type=int, default=64)
    flags.add_argument("--accuracy", nargs="+", default=[], help="run directories, for accuracy against iterations")
    flags.add_argument("--by", default="", help="with --accuracy: a line for each value of this field (eval.by)")
    flags.add_argument("--output", default="", help="the PNG; by default in the (first) run's directory")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def draw() -> None:
        if bool(options.run and options.prompt) == bool(options.accuracy):
            raise ValueError("give --run and --prompt for a heat map, or --accuracy and run directories")
        if options.run:
            return draw_run(options)
        runs = [accuracy_by_depth(Path(folder), options.by) for folder in options.accuracy]
        save(draw_accuracy(runs), Path(options.output or Path(options.accuracy[0]) / "accuracy.png"))

    return guarded(draw)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
