"""Which samples are submitted, and when: the second half of o1-ioi's strategy (2502.06807).

A problem has subtasks, numbered from the easiest on; samples are written for one of them each. Submissions go round the
subtasks, the hardest first, each time with the top sample of the top cluster. A solved subtask is left alone, and
samples for what strictly contains it are dropped where their outputs are not those of the sample that solved it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from infer.strategies.clusters import FAILED, Weights, cluster_scores, clusters, sample_scores

MOST = 50  # submissions to a problem, at the olympiad
PENALTIES = ("errors", "public", "repeated")  # the weights that the paper searches
Judge = Callable[[int], np.ndarray]  # a sample's number -> which subtasks it solves, [T] bool


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The S samples of a problem with T subtasks and I inputs, and what is known of them before any is submitted.

    `outputs` [S, I]: numbers of outputs (`clusters.numbered`). `subtask_of` [S]: the subtask each was written for.
    `valid` [T, I]: the inputs that count for a subtask. `inside` [T, T]: whether the first subtask is strictly
    contained in the second. `scorer` [S]: what a learned scorer says. `failed_public` [S]: the share of public tests
    failed. Raises ValueError for shapes that do not agree.
    """

    outputs: np.ndarray
    subtask_of: np.ndarray
    valid: np.ndarray
    inside: np.ndarray
    scorer: np.ndarray
    failed_public: np.ndarray

    def __post_init__(self) -> None:
        samples, inputs = self.outputs.shape
        subtasks = len(self.valid)
        wanted = {
            "subtask_of": (samples,),
            "valid": (subtasks, inputs),
            "inside": (subtasks, subtasks),
            "scorer": (samples,),
            "failed_public": (samples,),
        }
        for name, shape in wanted.items():
            if (found := getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {found}, and beside outputs {self.outputs.shape} it must be {shape}"
                )


@dataclasses.dataclass(frozen=True)
class Rule:
    """How to choose: `clustered`: by clusters, else each sample stands for itself; `narrows`: what a solved subtask
    says of the others is used.
    """

    weights: Weights
    clustered: bool = True
    narrows: bool = True


class Submission(NamedTuple):
    """A sample submitted for a subtask, and which subtasks it solves, [T] bool."""

    subtask: int
    sample: int
    solved: np.ndarray


class Group(NamedTuple):
    """The samples of a subtask by number, their scores and clusters, and the submissions from each cluster."""

    samples: np.ndarray
    scores: np.ndarray
    cluster_of: np.ndarray
    submitted: np.ndarray


def submit(evidence: Evidence, judge: Judge, rule: Rule, most: int = MOST) -> list[Submission]:
    """Submits up to `most` samples, until all subtasks are solved or no sample is left; equal ones in their order."""
    subtasks, samples = len(evidence.valid), len(evidence.outputs)
    groups = [_group(evidence, subtask, rule) for subtask in range(subtasks)]
    standing, solved, made = np.ones(samples, bool), np.zeros(subtasks, bool), list[Submission]()

    def waits(subtask: int) -> bool:
        return bool(not solved[subtask] and standing[groups[subtask].samples].any())

    while len(made) < most and any(map(waits, range(subtasks))):
        for subtask in reversed(range(subtasks)):
            if len(made) < most and waits(subtask):
                sample = _top(groups[subtask], standing, rule.weights)
                standing[sample] = False
                made.append(Submission(subtask, sample, judge(sample)))
                new = made[-1].solved & ~solved
                solved |= new
                if rule.narrows:
                    standing &= agreeing(evidence, sample, new)
    return made


def agreeing(evidence: Evidence, sample: int, solved: np.ndarray) -> np.ndarray:
    """Which samples [S] may still be right, after one has solved the subtasks `solved` [T]: those that have its outputs
    on the inputs of a solved subtask, where they are written for what strictly contains it.
    """
    kept = np.ones(len(evidence.outputs), bool)
    for subtask in np.flatnonzero(solved):
        outputs = evidence.outputs[:, evidence.valid[subtask]]
        kept &= (outputs == outputs[sample]).all(1) | ~evidence.inside[subtask][evidence.subtask_of]
    return kept


def solved_after(made: Sequence[Submission], subtasks: int, most: int) -> np.ndarray:
    """How many subtasks were solved after 0, 1, ... `most` submissions, [most + 1]."""
    solved, counts = np.zeros(subtasks, bool), [0]
    for submission in made[:most]:
        solved = solved | submission.solved
        counts.append(int(solved.sum()))
    return np.array(counts + counts[-1:] * (most + 1 - len(counts)))


def random_search(
    worth: Callable[[Weights], float], rng: np.random.Generator, draws: int, names: Sequence[str] = PENALTIES
) -> Weights:
    """The weights, out of so many drawn at random, that are worth most: on simulated submissions to past problems.

    Those named are drawn evenly in their logarithm, from .01 to 100; the others have their defaults.
    """
    rows = 10 ** rng.uniform(-2, 2, (draws, len(names)))
    return max((Weights(**dict(zip(names, map(float, row), strict=True))) for row in rows), key=worth)


def _group(evidence: Evidence, subtask: int, rule: Rule) -> Group:
    samples = np.flatnonzero(evidence.subtask_of == subtask)
    outputs = evidence.outputs[samples][:, evidence.valid[subtask]]
    errors = (outputs == FAILED).mean(1) if outputs.shape[1] else np.zeros(len(samples))
    scores = sample_scores(evidence.scorer[samples], errors, evidence.failed_public[samples], rule.weights)
    cluster_of = clusters(outputs) if rule.clustered else np.arange(len(samples))
    return Group(samples, scores, cluster_of, np.zeros(int(cluster_of.max(initial=-1)) + 1, np.int64))


def _top(group: Group, standing: np.ndarray, weights: Weights) -> int:
    """The number of the top sample of the top cluster among those that stand; it is counted as submitted."""
    left = standing[group.samples]
    worth = cluster_scores(group.scores, group.cluster_of, group.submitted, weights)
    worth[np.bincount(group.cluster_of, left, len(worth)) == 0] = -np.inf
    best = int(worth.argmax())
    group.submitted[best] += 1
    return int(group.samples[np.where(left & (group.cluster_of == best), group.scores, -np.inf).argmax()])
