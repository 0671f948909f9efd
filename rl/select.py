"""Which examples to learn from: accuracies kept from run to run, and the published rules that rank examples by them."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data.sources import Example
from data.tasks.base import Task, stable_hash

K = TypeVar("K", bound=Hashable)
AccuracyHistory = dict[str, list[float]]  # example key -> its mean accuracy, one entry per epoch it was sampled in
SHOWN = 3  # so many examples without a usable answer are quoted


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


def variance_scores(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, float]:
    """The standard deviation (ddof 0) of every example's accuracies, in the order of `history`."""
    # Row by row: a deviation along an axis of a matrix may add up in another order and break ties differently.
    return {key: float(np.std(row)) for key, row in checked(history).items()}


def alignment_scores(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, float]:
    """How closely every example's accuracy follows the mean of all: 1 for the mean itself, in the order of `history`.

    `1 - sum_k (a_ik - mean_k)^2 / sum_k (1 - mean_k)^2` over the epochs k that every example has: lists of unequal
    length are cut to the shortest, as the code of 2504.20571 does. Raises ValueError where every example is always
    right, since the score is then 0 / 0. Source: LIMR (2502.11886), learning impact measurement.
    """
    rows = checked(history)
    epochs = min(map(len, rows.values()))
    table = np.ascontiguousarray([row[:epochs] for row in rows.values()]).T  # [epochs, examples]
    mean = table.mean(axis=1, keepdims=True)
    room = float(np.square(1 - mean).sum())
    if not room:
        raise ValueError(f"every example is right in all of the first {epochs} epochs: LIMR's score divides by 0 there")
    return dict(zip(rows, (1 - np.square(table - mean).sum(axis=0) / room).tolist(), strict=True))


def above(scores: Mapping[K, float], threshold: float) -> list[K]:
    """The keys whose score is at least `threshold`, highest first; LIMR keeps those of 0.6 and more."""
    return [key for key in ranked(scores) if scores[key] >= threshold]


def ranked(scores: Mapping[K, float]) -> list[K]:
    """Keys by score, highest first; equal scores in the order of the mapping."""
    return sorted(scores, key=lambda key: scores[key], reverse=True)


def checked(history: Mapping[K, Sequence[float]] | np.ndarray) -> dict[Any, np.ndarray]:
    """Every example's accuracies as a float64 array; raises ValueError for what cannot be ranked."""
    rows = history.items() if isinstance(history, Mapping) else enumerate(np.asarray(history))
    found = {key: np.asarray(row, np.float64) for key, row in rows}
    if not found:
        raise ValueError("the accuracy history holds no example: record some epochs before ranking")
    for key, row in found.items():
        if row.ndim != 1 or not row.size:
            raise ValueError(f"example {key!r} must have a list of accuracies, found shape {row.shape}")
        if not ((row >= 0) & (row <= 1)).all():
            raise ValueError(f"accuracies lie in [0, 1]; example {key!r} has {row[~((row >= 0) & (row <= 1))][0]}")
    return found


def example_key(example: Example) -> str:
    """The name of an example in a history: 16 hexadecimal digits that depend on its content alone."""
    return f"{stable_hash(json.dumps(example, sort_keys=True, ensure_ascii=True, default=str)):016x}"


def append_epoch(history: Mapping[str, Sequence[float]], accuracies: Mapping[str, float]) -> AccuracyHistory:
    """A history with one more accuracy for each of the given examples; examples it did not know begin a list.

    An epoch may be recorded batch by batch, in calls whose examples differ. Raises ValueError for an accuracy that is
    no number in [0, 1].
    """
    for key, value in accuracies.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"accuracies lie in [0, 1], found {value} for example {key!r}")
    grown = {key: list(values) for key, values in history.items()}
    for key, value in accuracies.items():
        grown.setdefault(key, []).append(float(value))
    return grown


def group_accuracies(keys: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The mean score of each example from the P keys and scores [P, G] of a batch; copies of an example are pooled."""
    if np.ndim(scores) != 2 or len(scores) != len(keys):
        raise ValueError(f"scores must be [{len(keys)} prompts, samples], found shape {np.shape(scores)}")
    rows: dict[str, list[np.ndarray]] = {}
    for key, row in zip(keys, scores, strict=True):
        rows.setdefault(key, []).append(row)
    return {key: float(np.mean(found)) for key, found in rows.items()}


def to_json(history: Mapping[str, Sequence[float]]) -> str:
    """The history as one JSON object, in the form of the published `acc_step_500.json`."""
    return json.dumps({key: list(values) for key, values in history.items()}, allow_nan=False)


def from_json(text: str) -> AccuracyHistory:
    """The history that `to_json` wrote, in its order; ValueError for anything but an object of lists of accuracies."""
    read = json.loads(text)
    if not isinstance(read, dict) or not all(isinstance(values, list) for values in read.values()):
        raise ValueError("an accuracy history is a JSON object of lists: {example key: [accuracy, ...]}")
    return {key: row.tolist() for key, row in checked(read).items()} if read else {}


def verifiable(task: Task, examples: Sequence[Example]) -> tuple[list[Example], str | None]:
    """The examples whose own demonstration their verifier accepts, and a sentence about the others (None without any).

    An example that fails has an answer that cannot be read, or one that contradicts its demonstration: no completion of
    it could be scored, so it is left out, never rewarded. The sentence gives the count and the first three.
    """
    faults = [fault_of(task, example) for example in examples]
    kept = [example for example, fault in zip(examples, faults, strict=True) if fault is None]
    if len(kept) == len(examples):
        return kept, None
    failing = [f"{n} ({fault})" for n, fault in enumerate(faults) if fault is not None]
    return kept, (
        f"{len(failing)} of {len(examples)} examples are left out, since their own demonstration does not pass their"
        f" verifier: {', '.join(failing[:SHOWN])}{' ...' if len(failing) > SHOWN else ''}"
    )


def fault_of(task: Task, example: Example) -> str | None:
    """Why no completion of an example can be scored, or None."""
    try:
        verdict = task.verify(example, task.target(example))
    # An example from a file may lack a field or hold another type; it is named, and the others are still used.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if verdict.score >= 1 else verdict.reason or f"score {verdict.score}"
