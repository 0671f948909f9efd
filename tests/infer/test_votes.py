"""Votes: equal answers count together, ties and fallbacks are as told, and a decided vote never changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import Verdict, build_task
from data.verify.pool import InProcess, Judge, judge_of
from infer.strategies.votes import (
    Labels,
    best_of,
    borda_weights,
    decided,
    label_answers,
    majority,
    or_first,
    softmax_weights,
    tally,
)

MATH, GSM8K = build_task("math", path="unused"), build_task("gsm8k", path="unused")


class Residues:
    """Numbers are one answer where they leave the same rest; a reference above 90 is never compared in time."""

    def comparison(self, reference: str, answer: str) -> tuple[dict[str, Any], str]:
        return {"reference": int(reference)}, answer

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        if example["reference"] > 90:
            return Verdict(0.0, None, "timeout")
        return Verdict(float(example["reference"] % 3 == int(text) % 3), text, "")


class Larger(Residues):
    """An answer is right where it is at least the reference: an equality that is not symmetric."""

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        return Verdict(float(int(text) >= example["reference"]), text, "")


def numbered(task: Any, parsed: Sequence[str | None], example_of: Sequence[int] = ()) -> Labels:
    return label_answers(task, InProcess(task), parsed, example_of or [0] * len(parsed))


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with judge_of(MATH, workers=1, seconds=20.0) as judge:
        yield judge


def test_equal_formulas_are_one_answer_and_the_judge_is_the_tasks_own(judge: Judge) -> None:
    texts = [r"\boxed{\frac12}", "no box", r"\boxed{2}", r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{\frac{1}{2}}"]
    texts += [r"\boxed{3, 5}", r"\boxed{5}", r"\boxed{5,3}", r"\boxed{5\text{ cm}}"]
    parsed = [verdict.parsed for verdict in judge([{"answer": "7"}] * len(texts), texts)]
    found = label_answers(MATH, judge, parsed, [0] * 6 + [1] * 4)
    assert found.labels.tolist() == [0, -1, 1, 0, 0, 0, 0, 1, 0, 1]
    assert found.failed == 0


def test_a_long_answer_is_not_cut_to_one_that_it_is_not(judge: Judge) -> None:
    parsed = [judge([{"answer": "7"}], [rf"\boxed{{{digits}}}"])[0].parsed for digits in ("7" * 300, "7" * 299 + "8")]
    assert label_answers(MATH, judge, parsed, [0, 0]).labels.tolist() == [0, 1]


@pytest.mark.more
def test_hostile_formulas_end_as_answers_of_their_own() -> None:
    bomb = r"5^{5^{5^{5^5}}}"
    with judge_of(MATH, workers=1, seconds=1.0) as judge:
        found = label_answers(MATH, judge, ["1/2", bomb, r"\frac12", bomb, "{" * 5000, "\ud800"], [0] * 6)
    assert found.labels[[0, 1, 2, 3]].tolist() == [0, 1, 0, 1] and found.failed > 0


def test_numbers_are_one_answer_by_value() -> None:
    texts = ["#### 1,000", "it is 1000.", "#### 1000.0", "nothing", "#### 3/4", r"\boxed{0.75}", "#### 1e9"]
    parsed = [GSM8K.verify({"answer": "#### 5"}, text).parsed for text in texts]
    assert numbered(GSM8K, parsed).labels.tolist() == [0, 0, 0, -1, 1, 1, 2]


def test_only_the_first_of_each_class_is_compared() -> None:
    found = numbered(Residues(), ["1", "4", "2", "1", "7", None, "", "2", "4", "0"])
    assert found.labels.tolist() == [0, 0, 1, 0, 0, -1, -1, 1, 0, 2]
    # 4 with 1 both ways; 2 with 1; 7 with 1 both ways; 0 with 1 and with 2.
    assert found[1:] == (7, 0)


def test_examples_are_asked_about_together_and_kept_apart() -> None:
    calls = []

    class Counting(InProcess):
        def __call__(self, examples: Sequence[Any], texts: Sequence[str]) -> list[Verdict]:
            calls.append(len(texts))
            return super().__call__(examples, texts)

    parsed, example_of = ["1", "1", "4", "2", "3", "5"], [0, 2, 0, 2, 1, 2]
    found = label_answers(Residues(), Counting(Residues()), parsed, example_of)  # type: ignore[arg-type]
    assert found.labels.tolist() == [0, 0, 0, 1, 0, 1]
    assert calls == [2, 2, 1, 1] and found.comparisons == 6


def test_a_comparison_without_a_verdict_makes_other_answers_and_is_counted() -> None:
    found = numbered(Residues(), ["93", "96", "3", "0"])
    assert found.labels.tolist() == [0, 1, 2, 2] and found.failed == 5


def test_equality_holds_both_ways_round() -> None:
    assert numbered(Larger(), ["2", "5", "2"]).labels.tolist() == [0, 1, 0]


def test_without_a_comparison_equal_texts_are_one_answer() -> None:
    task = build_task("automaton")
    found = numbered(task, ["01", "1", None, "01", "", "1"])
    assert (found.labels.tolist(), found.comparisons) == ([0, 1, -1, 0, -1, 1], 0)


def test_the_majority_by_hand() -> None:
    labels, example_of = [0, 1, -1, 1, 0, 0, -1], [0, 1, 0, 0, 1, 0, 2]
    chosen, share = majority(labels, example_of)
    assert chosen.tolist() == [0, 1, -1]
    assert share == pytest.approx([2 / 4, 1 / 2, 0])
    filled, reasons = or_first(chosen, example_of)
    assert filled.tolist() == [0, 1, 6]
    assert list(reasons) == [2] and "none of its 1 candidates" in reasons[2]


def test_weights_decide_and_ties_go_to_the_class_seen_first() -> None:
    labels = [2, 0, 1, 0, 2]
    assert majority(labels, [0] * 5)[0] == 0
    assert majority(labels, [0] * 5, [1, 1, 2.5, 1, 1])[0] == 2
    assert majority(labels, [0] * 5, [0, 0, 0, 0, 0])[0] == 0
    # In floating point .1 + .2 + .3 depends on the order; exactly, these classes have the same.
    weights = [0.1, 0.3, 0.2, 0.2, 0.3, 0.1]
    chosen, share = majority([0, 1, 0, 1, 0, 1], [0] * 6, weights)
    assert chosen == 0 and share == pytest.approx(0.5)
    assert majority([-1, 0], [0, 0], [3, 1])[1] == pytest.approx(0.25)


def test_the_first_of_the_highest_scores_is_best() -> None:
    assert best_of([1.0, 3.0, -np.inf, 3.0, 2.0], [0, 0, 1, 0, 1]).tolist() == [1, 4]


def test_weights_of_scores() -> None:
    example_of, scores = [0, 1, 0, 1, 0], [-1000.0, 2.0, -1001.0, 2.0, -999.0]
    soft = softmax_weights(scores, example_of)
    assert soft[[1, 3]].tolist() == [0.5, 0.5]
    assert soft[[4, 0]] / soft[[0, 2]] == pytest.approx([np.e, np.e]) and soft[[0, 2, 4]].sum() == pytest.approx(1)
    assert borda_weights(scores, example_of, 2).tolist() == [4, 4, 1, 1, 9]
    assert borda_weights(scores, example_of, 0).tolist() == [1] * 5


def chosen_class(votes: Sequence[Fraction]) -> int:
    """The class that wins, -1 where there is none: the first of those with most votes."""
    return max(range(len(votes)), key=lambda number: votes[number]) if votes else -1


def endings(votes: list[Fraction], remaining: int, weights: Sequence[Fraction]) -> Iterator[list[Fraction]]:
    """The votes after every way in which further candidates may vote: for any class, a new one, or none."""
    if not remaining:
        yield votes
        return
    yield from endings(votes, remaining - 1, weights)
    for number, weight in itertools.product(range(len(votes) + 1), weights):
        more = [*votes, Fraction(0)] if number == len(votes) else list(votes)
        more[number] += weight
        yield from endings(more, remaining - 1, weights)


@settings(max_examples=150, deadline=None)
@given(
    votes=st.lists(st.integers(0, 4), max_size=3),
    remaining=st.integers(0, 3),
    most=st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(1), Fraction(3, 2)]),
)
def test_a_vote_is_decided_when_no_ending_changes_it(votes: list[int], remaining: int, most: Fraction) -> None:
    exact = [Fraction(vote) for vote in votes]
    winners = {chosen_class(end) for end in endings(exact, remaining, (most, most / 2))}
    assert decided(votes, remaining, float(most)) == (len(winners) == 1)


def test_a_decided_vote_is_one_of_its_tally() -> None:
    votes = tally([1, -1, 0, 1], [0.5, 9.0, 0.25, 0.25])
    assert list(votes.items()) == [(1, Fraction(3, 4)), (0, Fraction(1, 4))]
    assert decided(votes.values(), 1, 0.5) and not decided(votes.values(), 1, 0.625)
    assert not decided([], 1) and decided([], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of([1.0, np.nan], [0, 0]), "candidate 1 has the score NaN"),
        (lambda: softmax_weights([1.0, -np.inf], [0, 0]), "candidate 1 has a score that is not finite"),
        (lambda: best_of([[1.0]], [0]), "one score"),
        (lambda: best_of([], np.zeros(0, int)), "no candidates"),
        (lambda: best_of([1.0], [0, 0]), "1 candidates need as many examples"),
        (lambda: majority([0, 0], [0, 2]), "example 1 has no candidate"),
        (lambda: majority([0, 0], [0, -1]), "whole numbers from 0 on, found -1"),
        (lambda: majority([0, 0], [0.0, 0.0]), "whole numbers"),
        (lambda: majority([0, 0], [0, 0], [1, -0.5]), "candidate 1 has the weight -0.5.*softmax_weights"),
        (lambda: majority([0, 0], [0, 0], [np.nan, 1]), "candidate 0 has the weight NaN"),
        (lambda: majority([0, 0], [0, 0], [np.inf, 1]), "candidate 0 has the weight inf"),
        (lambda: majority([0, 0], [0, 0], [1]), "2 candidates need as many weights, got 1"),
        (lambda: decided([1], -1), "begin at 0"),
        (lambda: decided([-1], 1), "begin at 0"),
        (lambda: decided([1], 1, np.inf), "begin at 0"),
    ],
)
def test_bad_input_is_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
