"""Which samples of a prompt are kept: filters one after another, then an order, then a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.strategies.votes import members
from rl.jobs.texts import bound_of
from rl.reward_functions import Sample
from settings.stages import SampleConfig

FENCE = "```"
PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Sampled:
    """N samples, each of the prompt that `group_of` [N] numbers; `measures` by reward [N], `mean_logp` [N], `labels`
    [N] of the answers of a prompt's samples, -1 where none was read.
    """

    samples: Sequence[Sample]
    group_of: np.ndarray
    measures: dict[str, np.ndarray]
    mean_logp: np.ndarray
    labels: np.ndarray


def reasons(found: Sampled, rules: SampleConfig) -> list[str]:
    """For each sample [N] the name of the first filter that it does not pass, "" where it passes all."""
    lengths = np.array([sample.length for sample in found.samples])
    tests: dict[str, np.ndarray] = {
        "cut": np.array([not sample.finished for sample in found.samples]) & rules.finished,
        "short": lengths < rules.min_tokens,
        "long": (lengths > rules.max_tokens) & bool(rules.max_tokens),
        "code": np.array([FENCE in sample.text for sample in found.samples]) & (not rules.code),
        "paragraph": np.array([_longest(sample.text) > rules.paragraph for sample in found.samples])
        & bool(rules.paragraph),
        # A value that could not be computed is below every bound.
        **{name: ~(values >= bound_of(rules.least[name])) for name, values in found.measures.items()},
        "agreement": agreement(found) < rules.agreement,
    }
    names = list(tests)
    dropped = np.stack([tests[name] for name in names])
    return [names[int(column.argmax())] if column.any() else "" for column in dropped.T]


def agreement(found: Sampled) -> np.ndarray:
    """The share of a prompt's samples that give the same answer as this one [N]; 0 where none was read."""
    share = np.zeros(len(found.samples))
    for rows in members(found.group_of, len(found.samples)):
        labels = found.labels[rows]
        share[rows] = [(labels == label).mean() if label >= 0 else 0.0 for label in labels]
    return share


def chosen(found: Sampled, passed: np.ndarray, rules: SampleConfig, rng: np.random.Generator) -> np.ndarray:
    """The numbers of the samples that are kept, prompt by prompt, in the order that `rules.keep` says."""
    lengths = np.array([sample.length for sample in found.samples], float)
    ranked = found.measures[rules.rank] if rules.rank else found.mean_logp
    order = {
        "all": np.zeros(len(lengths)),
        "best": -ranked,
        "shortest": lengths,
        "longest": -lengths,
        "random": rng.random(len(lengths)),
    }[rules.keep]
    kept: list[int] = []
    for rows in members(found.group_of, len(lengths)):
        left = [int(row) for row in rows if passed[row]]
        kept += sorted(left, key=lambda row: (order[row], row))[: rules.most or None]
    return np.array(kept, int)


def _longest(text: str) -> int:
    """Words of the longest paragraph."""
    return max(len(paragraph.split()) for paragraph in PARAGRAPH.split(text))
