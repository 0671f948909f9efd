"""Samples clustered by what they answer, and ranked: the first half of o1-ioi's strategy (2502.06807).

Programs are run on generated inputs. An input counts when enough validators accept it; samples whose outputs are the
same on all of these are one cluster. A sample is worth what a learned scorer says of it, less penalties; a cluster is
worth the mean of its samples, less a penalty for each submission already made from it. Whoever runs the programs hands
in their outputs as numbers (`numbered`): a sandbox (data/verify/outputs.py), or expressions evaluated over arrays
(data/expressions.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

FAILED = -1  # in place of an output's number: the program has none
LEAST_ACCEPTED = 0.75  # the paper's share of validators


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a sample and its cluster are worth: `scorer` times the scorer's mean, less the share of inputs on which it
    fails times `errors`, less the share of public tests that it fails times `public`; and for the cluster less
    `repeated` for each submission from it, and `size` times its share of the samples (0 in the paper, whose clusters
    are worth their mean; alone it is AlphaCode's rule, 2203.07814).
    """

    scorer: float = 1.0
    errors: float = 1.0
    public: float = 10.0
    size: float = 0.0
    repeated: float = 1.0


def numbered(outputs: Sequence[Sequence[Hashable | None]]) -> np.ndarray:
    """Numbers [S, I] for the outputs of S samples on I inputs: equal ones for equal outputs, FAILED for None."""
    numbers: dict[Hashable | None, int] = {None: FAILED}
    rows = [[numbers.setdefault(output, len(numbers) - 1) for output in row] for row in outputs]
    return np.array(rows, np.int64).reshape(len(rows), -1)


def kept_inputs(accepted: np.ndarray, least: float = LEAST_ACCEPTED) -> np.ndarray:
    """Which inputs [I] count: those that at least this share of validators accept, accepted [V, I] bool.

    Raises ValueError without validators.
    """
    if not len(accepted):
        raise ValueError("inputs cannot be validated without a validator: give one, or keep all inputs")
    return np.asarray(accepted.mean(0) >= least)


def clusters(outputs: np.ndarray) -> np.ndarray:
    """The cluster [S] of every sample, numbered from 0: the same where outputs [S, I] agree on all inputs.

    A failure is an output like another: samples that fail on the same inputs may be one cluster.
    """
    if not outputs.shape[1]:
        return np.zeros(len(outputs), np.int64)
    return np.unique(outputs, axis=0, return_inverse=True)[1].reshape(-1)


def sample_scores(scorer: np.ndarray, errors: np.ndarray, failed_public: np.ndarray, weights: Weights) -> np.ndarray:
    """What every sample is worth, [S], from the scorer [S] and the shares of inputs and of public tests failed [S]."""
    return weights.scorer * scorer - weights.errors * errors - weights.public * failed_public


def cluster_scores(scores: np.ndarray, cluster_of: np.ndarray, submitted: np.ndarray, weights: Weights) -> np.ndarray:
    """What every cluster is worth, [C], from its samples' scores [S] and the submissions made from it, [C]."""
    sizes = np.bincount(cluster_of, minlength=len(submitted))
    means = np.bincount(cluster_of, scores, len(submitted)) / np.maximum(sizes, 1)
    return means + weights.size * sizes / len(scores) - weights.repeated * submitted
