"""Rewards of texts that lie in a file, written beside them as `scores`."""

from __future__ import annotations

import json

import numpy as np

from rl.jobs.texts import as_samples, measures, question_of, rewards_of, rows_of
from store.records import plain, replace_text
from train.console import Interrupt
from train.jobs.base import Job
from train.setup import Setup

SCORED = "scored.jsonl"
TOTAL = "reward"  # the weighted sum, among the scores


def run(setup: Setup, interrupt: Interrupt) -> dict[str, float]:
    """Writes scored.jsonl and returns the mean of every score."""
    del interrupt
    table = setup.config.score.rewards
    rows, texts = rows_of(setup, setup.config.data.split)
    groups = np.unique([str(question_of(row)) for row in rows], return_inverse=True)[1]
    found = measures(rewards_of(setup, table), as_samples(setup, rows, texts), groups)
    weights = {name: _weight(entry) for name, entry in table.items()}
    found[TOTAL] = sum(weights[name] * np.nan_to_num(values) for name, values in found.items())
    scored = [
        {**row, "scores": {name: float(values[n]) for name, values in found.items()}} for n, row in enumerate(rows)
    ]
    lines = [json.dumps(plain(row), ensure_ascii=False) for row in scored]
    replace_text(setup.workdir / SCORED, "".join(f"{line}\n" for line in lines))
    return {"rows": float(len(rows)), **{f"score/{name}": float(np.nanmean(v)) for name, v in found.items()}}


def check(setup: Setup) -> None:
    """Raises ValueError for rewards that cannot be built, and where none is named."""
    if not setup.config.score.rewards:
        raise ValueError("score.rewards is empty: name at least one, such as accuracy")
    rewards_of(setup, setup.config.score.rewards)


def _weight(entry: object) -> float:
    return float(entry.get("weight", 1.0)) if hasattr(entry, "get") else float(entry)  # type: ignore[arg-type]


JOB = Job(run, check)
