"""Which examples to learn from: the published rules that rank examples by their accuracies during a run.

python -m rl.select runs/pool --ranks=1,13 --out=runs/chosen.jsonl

ranks what a GRPO run was trained on, and writes two of its examples into a file that `data.split` takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data.names import unknown_name
from data.select.accuracy import K, above, alignment_scores, ranked, variance_scores
from data.sources.examples import Example
from data.tasks.base import Task, examples_of
from infer.load import open_origin
from rl.history import example_key, read_history
from store.records import replace_text
from train.cli import guarded
from train.setup import make_task

__all__ = [
    "above",
    "alignment_scores",
    "examples_by_key",
    "places",
    "rank_by_alignment",
    "rank_by_variance",
    "ranked",
    "variance_scores",
]

WIDTH = 100  # so many characters of a prompt are shown


def rank_by_variance(history: Mapping[K, Sequence[float]] | np.ndarray) -> list[K] | list[int]:
    """The examples by how much their accuracy moved during training, most first: keys of a mapping, or rows [N, T].

    The score is the standard deviation (ddof 0) of the example's own list; lists may differ in length. Equal scores
    keep the order of `history`, and scores are compared as float64: both as in the official code, whose ranks, ties
    included, this gives. Raises ValueError for an empty history or list, or an accuracy that is no number in [0, 1].
    Source: 2504.20571, section 2 (historical variance score; the deviation gives the same order).
    """
    return ranked(variance_scores(history))


def rank_by_alignment(history: Mapping[K, Sequence[float]] | np.ndarray) -> list[K] | list[int]:
    """The examples by `alignment_scores`, highest first; ties and errors as in `rank_by_variance`."""
    return ranked(alignment_scores(history))


RULES: dict[str, Callable[..., dict[Any, float]]] = {"variance": variance_scores, "alignment": alignment_scores}


def task_of(run: Path) -> tuple[Task, str]:
    """The task of a run directory, and the split that it was trained on."""
    config = ConfigDict(open_origin(run).config)
    return make_task(config), config.data.split


def examples_by_key(task: Task, split: str, keys: Sequence[str]) -> dict[str, Example]:
    """The examples behind keys, none read beyond the last; ValueError where the data do not hold one of them."""
    missing, found = set(keys), dict[str, Example]()
    for example in examples_of(task, split):
        if (key := example_key(example)) in missing:
            missing.discard(key)
            found[key] = example
        if not missing:
            return found
    raise ValueError(
        f"{len(missing)} of {len(keys)} examples, such as {min(missing)}, are not in split {split!r}: the data have"
        " changed since the run was made"
    )


def places(ranks: str, number: int) -> list[int]:
    """Indices of ranks such as "1,13,-1", from 1 up or from the end; ValueError for one that there is not."""
    try:
        asked = [int(rank) for rank in ranks.split(",")]
    except ValueError:
        raise ValueError(f"--ranks takes whole numbers such as 1,13,-1, found {ranks!r}") from None
    if wrong := [rank for rank in asked if not 1 <= abs(rank) <= number]:
        raise ValueError(f"there are ranks 1 to {number}, and -1 for the last; found {wrong[0]}")
    return [rank - 1 if rank > 0 else number + rank for rank in asked]


def select(options: argparse.Namespace) -> None:
    """Prints the ranks asked for, and writes their examples where that is asked for."""
    if options.rule not in RULES:
        raise unknown_name("rule", options.rule, RULES)
    source = Path(options.run)
    if options.out and not (source.is_dir() and options.out.endswith(".jsonl")):
        raise ValueError(f"--out={options.out} needs a run directory, which knows its examples, and ends in .jsonl")
    history = read_history(source)
    scores = RULES[options.rule](history)
    order: list[str] = ranked(scores)
    chosen = places(options.ranks, len(order)) if options.ranks else list(range(min(options.number, len(order))))
    keys = [order[place] for place in chosen]
    task, split = task_of(source) if source.is_dir() else (None, "")
    examples = examples_by_key(task, split, keys) if task else {}
    texts = {key: task.prompt(example) for key, example in examples.items()} if task else {}
    print(f"{len(order)} examples by {options.rule}\n{'rank':>6}{'score':>9}{'mean':>8}{'times':>7}  example")
    for place, key in zip(chosen, keys, strict=True):
        row = history[key]
        shown = repr(texts.get(key, key))[1:-1][:WIDTH]
        print(f"{place + 1:6}{scores[key]:9.4f}{np.mean(row):8.3f}{len(row):7}  {shown}")
    if options.out:
        replace_text(Path(options.out), "".join(f"{json.dumps(examples[key])}\n" for key in keys))
        print(f"train on them with --config.data.split={options.out}")


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m rl.select`."""
    flags = argparse.ArgumentParser("python -m rl.select", description="Ranks the examples of a GRPO run.")
    flags.add_argument("run", help="a run directory, or a JSON file of accuracies by key")
    flags.add_argument("--rule", default="variance", help=" | ".join(RULES))
    flags.add_argument("--number", type=int, default=20, help="so many of the first ranks")
    flags.add_argument("--ranks", default="", help="these ranks instead, such as 1,13,-1 (the last)")
    flags.add_argument("--out", default="", help="a .jsonl file for the examples shown, which data.split takes")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 for wrong use."""
    return guarded(lambda: select(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
