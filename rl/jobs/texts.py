"""Texts of a model with what is measured of them, as rewards see them and as rows of a file hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data.chat import render_prompt
from data.sources.examples import Example
from data.tasks.base import WRITTEN, examples_of
from infer.reward_model import open_reward_model
from rl.reward_functions import Reward, Sample
from rl.rewards import build_reward, measured
from train.setup import Setup

ABOUT = "sample"  # the field of a row that says where its text is from


def rewards_of(setup: Setup, table: Mapping[str, Any]) -> dict[str, Reward]:
    """The rewards of a table by name, without their weights and bounds."""
    opened = partial(open_reward_model, mesh=setup.mesh, opened=setup.open)
    found = {}
    for name, entry in table.items():
        options = {k: v for k, v in entry.items() if k not in ("weight", "least", "kind")} if _is_map(entry) else {}
        kind = entry.get("kind", name) if _is_map(entry) else name
        found[name] = build_reward(kind, opened, **options)
    return found


def bound_of(entry: Any) -> float:
    """What a sample's reward must be at least."""
    return float(entry.get("least", 1.0)) if _is_map(entry) else float(entry)


def measures(rewards: Mapping[str, Reward], samples: Sequence[Sample], group_of: np.ndarray) -> dict[str, np.ndarray]:
    """Every reward of samples, [N]; NaN where it could not be computed."""
    found = {}
    for name, reward in rewards.items():
        values, faults = measured(reward, samples, group_of)
        found[name] = np.where(np.isin(np.arange(len(samples)), list(faults)), np.nan, values)
    return found


def rows_of(setup: Setup, path: str) -> tuple[list[Example], list[str]]:
    """The rows of a file and what a model wrote in each; ValueError for rows without it."""
    rows = list(examples_of(setup.task, path))
    wrong = next((n for n, row in enumerate(rows) if not isinstance(row.get(WRITTEN), str)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}, line {wrong + 1} has no text under {WRITTEN!r}: give a file that the stage `sample` wrote"
        )
    return rows, [row[WRITTEN] for row in rows]


def question_of(row: Example) -> Example:
    """The example that a row answers, without what was written and said of it."""
    return {name: value for name, value in row.items() if name not in (WRITTEN, ABOUT, "scores")}


def as_samples(setup: Setup, rows: Sequence[Example], texts: Sequence[str]) -> list[Sample]:
    """Texts in a file as rewards see them: judged anew, and taken to have ended by themselves unless they say."""
    data, asked = setup.config.data, [question_of(row) for row in rows]
    verdicts = setup.judge(asked, texts)
    prompts = [
        render_prompt(setup.tokenizer, setup.task.prompt(example), data.template, data.system or None)
        for example in asked
    ]
    found = []
    for row, example, prompt, text, verdict in zip(rows, asked, prompts, texts, verdicts, strict=True):
        about = row.get(ABOUT, {})
        length, limit = about.get("tokens") or len(setup.tokenizer.encode(text)) + 1, setup.config.sample.max_new_tokens
        found.append(Sample(example, prompt, text, verdict, length, about.get("finished", True), limit))
    return found


def _is_map(entry: Any) -> bool:
    return isinstance(entry, Mapping) or hasattr(entry, "to_dict")
