"""How often every example was right while a run trained on it: accuracy.jsonl, a line per rollout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.select.accuracy import checked
from data.tasks.base import example_key
from store.objects import place
from store.records import append_line, read_lines, truncate

__all__ = [
    "AccuracyHistory",
    "AccuracyLog",
    "example_key",
    "from_json",
    "group_accuracies",
    "history_of",
    "read_history",
]

AccuracyHistory = dict[str, list[float]]  # example key -> its mean accuracy, one entry per rollout it was sampled in
FILE = "accuracy.jsonl"


class AccuracyLog:
    """Appends each rollout's accuracies to accuracy.jsonl; of a resumed run no rollout stands there twice."""

    def __init__(self, workdir: str | Path) -> None:
        """Writes nothing yet."""
        self._path, self._begun = place(workdir) / FILE, False

    def __call__(self, step: int, accuracies: Mapping[str, float]) -> None:
        """Appends the rollout that update `step` begins with; the first call drops what was lost of this step on."""
        if not self._begun:
            truncate(self._path, step)
            self._begun = True
        append_line(self._path, {"step": step + 1, "accuracies": dict(accuracies)})


def read_history(path: str | Path) -> AccuracyHistory:
    """The history of a run directory, or of a JSON file of lists by key, the form of the published `acc_step_500.json`.

    Raises FileNotFoundError where there is none, ValueError for a file of another form.
    """
    path = place(path)
    if path.is_file():
        try:
            return from_json(path.read_bytes().decode())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not (path / FILE).is_file():
        raise FileNotFoundError(f"no {path / FILE}: give the directory of a GRPO run, which writes it, or a JSON file")
    return history_of(record["accuracies"] for record in read_lines(path / FILE, {"accuracies": dict}))


def history_of(epochs: Iterable[Mapping[str, float]]) -> AccuracyHistory:
    """The accuracies of every example, in the order in which it was first met, each list in the order of the epochs.

    An epoch may come batch by batch, as mappings whose examples differ. Raises ValueError for an accuracy that is no
    number in [0, 1].
    """
    history: AccuracyHistory = {}
    for accuracies in epochs:
        for key, value in accuracies.items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"accuracies lie in [0, 1], found {value} for example {key!r}")
            history.setdefault(key, []).append(float(value))
    return history


def group_accuracies(keys: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The mean score of each example from the P keys and scores [P, G] of a batch; copies of an example are pooled."""
    if np.ndim(scores) != 2 or len(scores) != len(keys):
        raise ValueError(f"scores must be [{len(keys)} prompts, samples], found shape {np.shape(scores)}")
    rows: dict[str, list[np.ndarray]] = {}
    for key, row in zip(keys, scores, strict=True):
        rows.setdefault(key, []).append(row)
    return {key: float(np.mean(found)) for key, found in rows.items()}


def from_json(text: str) -> AccuracyHistory:
    """The history that a JSON object holds, in its order; ValueError for anything but an object of accuracies."""
    read = json.loads(text)
    if not isinstance(read, dict) or not all(isinstance(values, list) for values in read.values()):
        raise ValueError("an accuracy history is a JSON object of lists: {example key: [accuracy, ...]}")
    return {key: row.tolist() for key, row in checked(read).items()} if read else {}
