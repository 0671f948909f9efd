"""What k samples would achieve, told from n >= k of them without bias: pass@k, best@k, maj@k, and their intervals.

An array over k is [n], its entry k - 1 for k samples. All of them are means over the subsets of k of the n samples of
one example, in a random order: of samples that are alike in what chooses them, each is seen first as often.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MOST_EXACT = 1000  # samples; the number of subsets of more is beyond float64
DRAWS = 1024  # subsets in the place of all 2^n


class Estimate(NamedTuple):
    """A value and the bounds of its confidence interval; each a number or an array over k."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class AtK(NamedTuple):
    """Values over k [n], and the standard errors of those that were drawn [n]: 0 where the value is exact."""

    values: np.ndarray
    errors: np.ndarray


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimator of the chance that one of k samples is right (2107.03374, equation 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs between 1 and {samples} samples")
    if not 0 <= right <= samples:
        raise ValueError(f"{right} of {samples} samples cannot be right")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def best_at_k(scores: ArrayLike, outcomes: ArrayLike | None = None) -> np.ndarray:
    """The expected outcome of the one of k samples that has the highest score, for k = 1 .. n.

    `scores` [n] choose, `outcomes` [n] are what the chosen one is worth, such as 1 where it is right; without them the
    scores themselves, so that outcomes of 0 and 1 alone give pass@k. Exact: the sample of rank r of n is the best of k
    in C(n - r, k - 1) of the C(n, k) subsets. Raises ValueError without samples and for NaN.
    """
    scores = _values("score", scores)
    outcomes = _values("outcome", scores if outcomes is None else outcomes, len(scores), finite=True)
    _, tied = np.unique(scores, return_inverse=True)
    expected = np.bincount(tied, outcomes)[tied] / np.bincount(tied)[tied]
    return _chances(len(scores)) @ expected[np.argsort(-scores, kind="stable")]


def _chances(n: int) -> np.ndarray:
    """[k - 1, r - 1]: how probably the sample of rank r is the best of k of n."""
    k, rank = np.arange(1, n + 1)[:, None], np.arange(1, n)[None]
    # From one rank to the next: C(n - r - 1, k - 1) / C(n - r, k - 1).
    ratios = np.maximum(n - rank - k + 1, 0) / (n - rank)
    return np.cumprod(np.concatenate([k / n, ratios], axis=1), axis=1)


def majority_at_k(labels: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None, seed: int = 0) -> AtK:
    """The expected outcome of the majority's answer among k samples, for k = 1 .. n.

    `labels` [n]: classes of equal answers, -1 for none, which has no vote; `outcomes` [n]: what choosing a sample is
    worth, such as 1 where it is right; a subset in which nobody has an answer is worth 0. Ties go to the class that is
    seen first. Votes that count alike are summed exactly over the counts of all subsets (multivariate hypergeometric),
    up to MOST_EXACT samples. With `weights` [n] (each sample's own, from 0 on), or more samples, all subsets are gone
    through where they are at most DRAWS, else DRAWS are drawn for each k from `seed`, with standard errors.
    """
    labels = _values("label", labels)
    outcomes = _values("outcome", outcomes, len(labels), finite=True)
    read = labels >= 0
    classes, place = np.unique(labels[read], return_inverse=True)
    if weights is None and len(labels) <= MOST_EXACT:
        counts = np.bincount(place, minlength=len(classes))
        worth = np.bincount(place, outcomes[read], minlength=len(classes)) / counts
        values = _over_counts(counts.tolist(), worth, len(labels))
        return AtK(values, np.zeros(len(labels)))
    weights = _values("weight", np.ones(len(labels)) if weights is None else weights, len(labels), finite=True)
    if weights.min() < 0:
        raise ValueError(f"sample {weights.argmin()} has the weight {weights.min()}: votes count from 0 on")
    voters = np.zeros((len(labels), len(classes)))
    voters[np.flatnonzero(read), place] = 1
    return _over_subsets(voters, weights, outcomes, seed)


def _over_counts(counts: list[int], worth: np.ndarray, n: int) -> np.ndarray:
    """`majority_at_k` of classes with so many samples, whose answers are worth so much [C].

    For each number of votes that may win, the product over classes of polynomials in x, whose powers count samples:
    classes with fewer votes, and winners, of which one is marked by what it is worth. With y for each other winner the
    integral over y in 0..1 divides by the number of winners; Gauss-Legendre nodes make it exact.
    """
    total = np.zeros(n + 1)
    for most in range(1, max(counts, default=0) + 1):
        able = [number for number, count in enumerate(counts) if count >= most]
        others = _ways(n - sum(counts[number] for number in able))
        nodes, widths = np.polynomial.legendre.leggauss((len(able) + 1) // 2)
        for y, width in zip((nodes + 1) / 2, widths / 2, strict=True):
            unmarked, marked = others, np.zeros_like(others)
            for number in able:
                fewer, wins = _ways(counts[number])[: most + 1], np.zeros(most + 1)
                wins[most], fewer[most] = fewer[most], 0
                marked = np.convolve(marked, fewer + y * wins) + worth[number] * np.convolve(unmarked, wins)
                unmarked = np.convolve(unmarked, fewer + y * wins)
            total[: len(marked)] += width * marked
    return total[1:] / _ways(n)[1:]


def _ways(n: int) -> np.ndarray:
    """How many subsets of 0 .. n samples n have [n + 1]."""
    return np.array([math.comb(n, k) for k in range(n + 1)], np.float64)


def _over_subsets(voters: np.ndarray, weights: np.ndarray, outcomes: np.ndarray, seed: int) -> AtK:
    """`majority_at_k` over subsets, all or drawn; `voters` [n, C] is 1 where a sample is of a class."""
    n = len(weights)
    if 2**n <= DRAWS:
        subsets = np.arange(1, 2**n)[:, None] >> np.arange(n) & 1
        won, sizes = _won(subsets, voters, weights, outcomes), subsets.sum(1)
        return AtK(np.array([won[sizes == k].mean() for k in range(1, n + 1)]), np.zeros(n))
    # The first k of a random order are a random subset of k.
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    drawn = np.array([_won(order < k, voters, weights, outcomes) for k in range(1, n + 1)])
    return AtK(drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(DRAWS))


def _won(subsets: np.ndarray, voters: np.ndarray, weights: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """What the majority's answer is worth in each subset [S], given as members [S, n]; of a tie the mean."""
    present = subsets @ voters > 0
    votes = np.where(present, subsets @ (voters * weights[:, None]), -1.0)
    # Equal but for rounding. Any member of the tied classes may be the first that is seen.
    tied = present & (votes >= votes.max(1, initial=-1.0, keepdims=True) * (1 - 1e-12))
    seen = subsets * (tied @ voters.T)
    return (seen @ outcomes) / np.maximum(seen.sum(1), 1)


def wilson(right: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Estimate:
    """A proportion and its Wilson score interval, which stays in 0..1 and has a width at 0 and 1, too.

    `right` of `n` independent trials, numbers or arrays. Raises ValueError for n below 1 and counts beyond it.
    """
    right, n = np.asarray(right, np.float64), np.asarray(n, np.float64)
    if not (n >= 1).all() or not ((right >= 0) & (right <= n)).all():
        raise ValueError(f"a proportion is of at least 1 trial and between none and all of them, got {right} of {n}")
    z, share = _quantile(confidence), right / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))


def over_examples(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean over examples of `values` [E] or [E, n], such as pass@k of each, with an interval.

    Examples are the unit: samples of one example depend on each other. Where all values are 0 or 1 they are
    proportions, and the interval is Wilson's. Elsewhere it is the normal one, mean +- z s / sqrt(E): values lie within
    bounds, so that their mean over some thirty examples is near to normal, and unlike a bootstrap's, which agrees with
    it to first order, its bounds need no draws. Raises ValueError without examples, for one whose values are no 0 or 1,
    and for NaN.
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"expected values [E] or [E, n] of at least one example, found shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"example {np.argwhere(np.isnan(values))[0][0]} has the value NaN: leave it out")
    count, mean = len(values), values.mean(0)
    binary = ((values == 0) | (values == 1)).all(0)
    if count == 1 and not binary.all():
        raise ValueError("one example has no spread to make an interval of: give two or more")
    half = _quantile(confidence) * values.std(0, ddof=min(1, count - 1)) / math.sqrt(count)
    proportion = wilson(np.where(binary, values.sum(0), 0), count, confidence)
    low, high = np.where(binary, proportion.low, mean - half), np.where(binary, proportion.high, mean + half)
    return Estimate(mean, low, high)


def _quantile(confidence: float) -> float:
    """How many deviations a normal variable stays within, so probably."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _values(what: str, values: ArrayLike, count: int | None = None, finite: bool = False) -> np.ndarray:
    """One number for each sample [n]; ValueError for none, another number of them, NaN and, if `finite`, infinities."""
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not numbers.size or len(numbers) != (len(numbers) if count is None else count):
        expected = "at least one sample" if count is None else f"{count} samples"
        raise ValueError(f"expected a {what} for each of {expected}, found shape {numbers.shape}")
    wrong = ~np.isfinite(numbers) if finite else np.isnan(numbers)
    if wrong.any():
        raise ValueError(
            f"sample {wrong.argmax()} has the {what} {numbers[wrong][0]}: leave it out, or give it a {what}"
        )
    return numbers
