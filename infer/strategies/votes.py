"""Votes among candidates: which answers are one, whom the majority chooses, whether that can still change.

N candidates belong to E examples by `example_of` [N], numbers from 0 to E - 1 in any order, as `Rollout.group_of` is;
"first" is by a candidate's place among the N. Who is chosen is told as such a place, [E].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from data.sources.examples import Example
from data.tasks.base import Task
from data.verify.pool import Judge

T = TypeVar("T")
Pair = tuple[str, str]
Asking = Generator[Pair, bool, T]  # asks whether two answers are one, is sent whether, and returns a T


class Labels(NamedTuple):
    """`labels` [N]: candidates of an example with the same number gave the same answer, -1 where none could be read.

    Numbers run from 0 by first appearance in each example. `comparisons`: how many were judged; `failed`: how many of
    them came to no verdict (a limit of time, say), which counts as another answer.
    """

    labels: np.ndarray
    comparisons: int
    failed: int


def label_answers(task: Task, judge: Judge, parsed: Sequence[str | None], example_of: ArrayLike) -> Labels:
    """Numbers the answers of each example, `parsed` [N] as `Verdict.parsed` has them; None and "" are none.

    Equal texts are one answer. Where the task has `comparison(reference, answer)`, so are two that `judge` finds right
    with the other as reference, both ways round, since a judge's equality need not be symmetric. Each text is compared
    to the first of every class, in order, up to the one that it belongs to; `judge` is asked for all examples at once.
    """
    examples = members(example_of, len(parsed))
    compared = hasattr(task, "comparison")
    comparisons = failed = 0

    def same(pairs: Sequence[Pair]) -> list[bool]:
        nonlocal comparisons, failed
        posed: list[tuple[Example, str]] = [task.comparison(*pair) for pair in pairs]  # type: ignore[attr-defined]
        verdicts = judge([example for example, _ in posed], [text for _, text in posed])
        comparisons += len(verdicts)
        failed += sum(verdict.parsed is None for verdict in verdicts)
        return [verdict.score >= 1 for verdict in verdicts]

    found = in_step([_classes([parsed[row] for row in rows], compared) for rows in examples], same)
    labels = np.full(len(parsed), -1, np.int32)
    for rows, numbers in zip(examples, found, strict=True):
        labels[rows] = numbers
    return Labels(labels, comparisons, failed)


def in_step(runs: Sequence[Asking[T]], same: Callable[[Sequence[Pair]], Sequence[bool]]) -> list[T]:
    """What generators return, in order; what they ask meanwhile is answered in one call for all that still run."""
    results: dict[int, T] = {}
    answers: dict[int, bool | None] = dict.fromkeys(range(len(runs)))
    while answers:
        questions: dict[int, Pair] = {}
        for number, answer in answers.items():
            try:
                questions[number] = runs[number].send(answer)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                results[number] = end.value
        answers = dict(zip(questions, same(list(questions.values())), strict=True)) if questions else {}
    return [results[number] for number in range(len(runs))]


def _classes(texts: Sequence[str | None], compared: bool) -> Asking[list[int]]:
    """The number of each text's class, -1 for no text; texts that differ are asked about where they are `compared`."""
    number_of: dict[str, int] = {}
    first: list[str] = []
    for text in filter(None, texts):
        if text in number_of:
            continue
        for number, other in enumerate(first if compared else ()):
            if (yield other, text) and (yield text, other):
                number_of[text] = number
                break
        else:
            number_of[text] = len(first)
            first.append(text)
    return [number_of[text] if text else -1 for text in texts]


def members(example_of: ArrayLike, candidates: int) -> list[np.ndarray]:
    """The places of each example's candidates, in order: E arrays.

    Raises ValueError without candidates, for other than `candidates` numbers, and for an example that has none.
    """
    numbers = np.asarray(example_of)
    if numbers.shape != (candidates,):
        raise ValueError(f"{candidates} candidates need as many examples, `example_of` has shape {numbers.shape}")
    if not candidates:
        raise ValueError("there are no candidates to choose from: sample at least one for each example")
    if numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(f"`example_of` holds whole numbers from 0 on, found {numbers.min()} ({numbers.dtype})")
    counts = np.bincount(numbers)
    if not counts.all():
        raise ValueError(f"example {counts.argmin()} has no candidate: sample at least one for each example")
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])


def tally(labels: Iterable[int], weights: Iterable[float] | None = None) -> dict[int, Fraction]:
    """The votes for each class of one example by its label, first seen first, exactly; -1 has none."""
    votes: dict[int, Fraction] = {}
    labels = list(labels)
    for label, weight in zip(labels, [1] * len(labels) if weights is None else weights, strict=True):
        if label >= 0:
            votes[int(label)] = votes.get(int(label), Fraction(0)) + Fraction(float(weight))
    return votes


def majority(
    labels: ArrayLike, example_of: ArrayLike, weights: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(chosen, share) [E]: the first candidate of the class with most votes, and their share of all candidates' votes.

    Of classes with as many votes the one that was seen first wins; votes are added exactly, so the order of candidates
    decides nothing else. `weights` [N]: what each vote counts, from 0 on (`softmax_weights` and `borda_weights` make
    them of log-probs, rewards or self-certainty; without them every vote counts 1: self-consistency, 2203.11171). A
    candidate without an answer (label -1) votes for none and counts in the share. Where no candidate of an example has
    an answer, `chosen` is -1 and the share 0: `or_first` takes its first candidate and says why.
    """
    labels = np.asarray(labels)
    examples = members(example_of, len(labels))
    counts = np.ones(len(labels)) if weights is None else _weights(weights, len(labels))
    chosen, share = np.full(len(examples), -1), np.zeros(len(examples))
    for example, rows in enumerate(examples):
        votes = tally(labels[rows], counts[rows])
        if votes:
            winner = max(votes, key=votes.__getitem__)  # of several the first seen
            chosen[example] = rows[labels[rows] == winner][0]
            share[example] = votes[winner] / (sum(map(Fraction, counts[rows].tolist())) or 1)
    return chosen, share


def or_first(chosen: ArrayLike, example_of: ArrayLike) -> tuple[np.ndarray, dict[int, str]]:
    """`chosen` [E] with the first candidate of an example in the place of -1, and {example: the reason} for each."""
    examples = members(example_of, len(np.asarray(example_of)))
    filled, reasons = np.array(chosen), dict[int, str]()
    for example in np.flatnonzero(filled < 0).tolist():
        rows = examples[example]
        filled[example] = rows[0]
        reasons[example] = f"none of its {len(rows)} candidates has an answer that can be read: the first is taken"
    return filled, reasons


def best_of(scores: ArrayLike, example_of: ArrayLike) -> np.ndarray:
    """The candidate with the highest score of each example [E], of several the first; ValueError for NaN."""
    scores = _numbers("score", scores)
    return np.array([rows[scores[rows].argmax()] for rows in members(example_of, len(scores))])


def decided(votes: Iterable[float | Fraction], remaining: int, most: float = 1.0) -> bool:
    """Whether a vote can no longer change, whatever `remaining` further candidates say, each with a weight in 0..most.

    `votes`: those of each class so far, first seen first, as `tally` gives them: sums that were rounded may mislead.
    Further candidates may vote for any class, a new one or none. True exactly when `majority` chooses the same
    candidate after each of these endings.
    """
    exact = [Fraction(vote) for vote in votes]
    if remaining < 0 or not 0 <= most < math.inf or min(exact, default=0) < 0:
        raise ValueError(f"votes, candidates to come and their weights begin at 0, got {exact}, {remaining} and {most}")
    if not exact:
        return remaining == 0
    winner, gain = exact.index(max(exact)), remaining * Fraction(most)
    # A class that was seen before the winner takes over when it draws level, a later or a new one when it has more.
    earlier = all(vote + gain < exact[winner] for vote in exact[:winner])
    return earlier and all(vote + gain <= exact[winner] for vote in [*exact[winner + 1 :], Fraction(0)])


def softmax_weights(scores: ArrayLike, example_of: ArrayLike) -> np.ndarray:
    """exp of each score [N], divided by the sum over its example: weights of votes made of log-probs or rewards.

    With log-probs per token this is self-consistency's normalised weighted sum (2203.11171, section 2).
    """
    scores = _numbers("score", scores)
    if not np.isfinite(scores).all():
        raise ValueError(f"candidate {np.isfinite(scores).argmin()} has a score that is not finite: no weight")
    weights = np.empty(len(scores))
    for rows in members(example_of, len(scores)):
        shifted = np.exp(scores[rows] - scores[rows].max())
        weights[rows] = shifted / shifted.sum()
    return weights


def borda_weights(scores: ArrayLike, example_of: ArrayLike, power: float = 1.0) -> np.ndarray:
    """(n - rank + 1)^power [N] by a candidate's rank among the n of its example, 1 for the highest score.

    Of equal scores the first has the better rank. Power 0 is the plain majority, a great one the best of n
    (self-certainty with Borda voting, 2502.18581).
    """
    scores = _numbers("score", scores)
    weights = np.empty(len(scores))
    for rows in members(example_of, len(scores)):
        weights[rows[np.argsort(-scores[rows], kind="stable")]] = np.arange(len(rows), 0.0, -1.0) ** power
    return weights


def _numbers(what: str, values: ArrayLike) -> np.ndarray:
    """A number for each candidate [N]; ValueError that names the first candidate with NaN."""
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"each candidate has one {what}, found an array of shape {numbers.shape}")
    if (wrong := np.isnan(numbers)).any():
        raise ValueError(f"candidate {wrong.argmax()} has the {what} NaN: leave it out, or give it a {what}")
    return numbers


def _weights(values: ArrayLike, candidates: int) -> np.ndarray:
    weights = _numbers("weight", values)
    if len(weights) != candidates:
        raise ValueError(f"{candidates} candidates need as many weights, got {len(weights)}")
    if (wrong := ~(np.isfinite(weights) & (weights >= 0))).any():
        raise ValueError(
            f"candidate {wrong.argmax()} has the weight {weights[wrong][0]}: a vote counts a finite number from 0 on;"
            " softmax_weights and borda_weights make such numbers of log-probs and rewards"
        )
    return weights
