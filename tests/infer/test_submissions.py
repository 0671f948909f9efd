"""Submissions: hardest first, in turns, the top sample of the top cluster, and what a solved subtask leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from infer.strategies.clusters import FAILED, Weights
from infer.strategies.submissions import (
    Evidence,
    Rule,
    Submission,
    agreeing,
    random_search,
    solved_after,
    submit,
)

NOTHING = np.zeros(2, bool)
# Two subtasks, the first inside the second; input 0 counts for both, input 1 for the second alone.
EASY = np.array([[1, 9], [2, 9], [1, 9]])
HARD = np.array([[1, 5], [2, 5], [1, 6], [1, 6]])


def evidence(**changes: Any) -> Evidence:
    """Samples 0 to 2 for the first subtask, 3 to 6 for the second."""
    known = Evidence(
        outputs=np.concatenate([EASY, HARD]),
        subtask_of=np.array([0, 0, 0, 1, 1, 1, 1]),
        valid=np.array([[True, False], [True, True]]),
        inside=np.array([[False, True], [False, False]]),
        scorer=np.array([0.0, 0.9, 0.1, 0.8, 0.9, 0.3, 0.4]),
        failed_public=np.zeros(7),
    )
    return dataclasses.replace(known, **changes)


def none_is_right(_: int) -> np.ndarray:
    return NOTHING


def test_subtasks_take_turns_and_the_hardest_is_first() -> None:
    made = submit(evidence(), none_is_right, Rule(Weights(repeated=0.0)), most=6)
    assert [each.subtask for each in made] == [1, 0, 1, 0, 1, 0]
    # Means of the second subtask's clusters: .8, .9 and .35; of the first's: .05 and .9.
    assert [each.sample for each in made] == [4, 1, 3, 2, 6, 0]


def test_all_samples_at_most_once_and_no_more_than_allowed() -> None:
    made = submit(evidence(), none_is_right, Rule(Weights()))
    assert sorted(each.sample for each in made) == list(range(7))
    assert len(submit(evidence(), none_is_right, Rule(Weights()), most=3)) == 3


def test_a_cluster_is_penalised_for_its_submissions() -> None:
    weights = Weights(scorer=0.0, size=1.0, repeated=0.0)
    largest = [each.sample for each in submit(evidence(), none_is_right, Rule(weights)) if each.subtask == 1]
    assert largest[:2] == [5, 6], "the larger cluster twice"
    turns = submit(evidence(), none_is_right, Rule(dataclasses.replace(weights, repeated=1.0)))
    assert [each.sample for each in turns if each.subtask == 1] == [5, 3, 4, 6]


def test_without_clusters_the_scorer_decides_alone() -> None:
    made = submit(evidence(), none_is_right, Rule(Weights(), clustered=False))
    assert [each.sample for each in made if each.subtask == 1] == [4, 3, 6, 5]
    made = submit(evidence(failed_public=np.eye(7)[4]), none_is_right, Rule(Weights(), clustered=False))
    assert [each.sample for each in made if each.subtask == 1] == [3, 6, 5, 4]


def test_failures_cost() -> None:
    outputs = np.concatenate([EASY, HARD])
    outputs[4, 1] = FAILED
    made = submit(evidence(outputs=outputs), none_is_right, Rule(Weights(errors=1.0), clustered=False))
    assert made[0].sample == 3


def test_a_solved_subtask_stops_and_narrows_what_contains_it() -> None:
    def judge(sample: int) -> np.ndarray:
        return np.array([sample == 0, False])

    known = evidence(scorer=np.array([0.9, 0.0, 0.1, 0.5, 0.4, 0.0, 0.0]))
    rule = Rule(Weights(repeated=0.0))
    made = submit(known, judge, rule)
    assert [(each.subtask, each.sample) for each in made] == [(1, 3), (0, 0), (1, 5), (1, 6)]
    alone = submit(known, judge, dataclasses.replace(rule, narrows=False))
    assert [each.sample for each in alone] == [3, 0, 4, 5, 6], "4 says 2 where the sample that was right says 1"


def test_agreement_is_asked_of_strict_supersets_on_the_inputs_of_the_solved_one() -> None:
    assert agreeing(evidence(), 0, np.array([True, False])).tolist() == [True] * 3 + [True, False, True, True]
    assert agreeing(evidence(), 3, np.array([False, True])).all()
    assert agreeing(evidence(), 0, NOTHING).all()


def test_a_sample_of_the_hardest_may_solve_all() -> None:
    made = submit(evidence(), lambda sample: np.array([sample == 4] * 2), Rule(Weights()))
    assert [each.sample for each in made] == [4]


def test_curves() -> None:
    made = [
        Submission(1, 4, NOTHING),
        Submission(0, 1, np.array([True, False])),
        Submission(1, 3, np.array([True, True])),
    ]
    assert solved_after(made, 2, 5).tolist() == [0, 0, 1, 2, 2, 2]
    assert solved_after(made, 2, 2).tolist() == [0, 0, 1]
    assert solved_after([], 2, 2).tolist() == [0, 0, 0]


def test_a_search_finds_what_is_worth_most() -> None:
    found = random_search(lambda weights: -abs(np.log10(weights.errors)), np.random.default_rng(0), 200)
    assert 0.9 < found.errors < 1.1 and found.scorer == 1.0 and found.size == 0.0
    assert random_search(lambda w: w.size, np.random.default_rng(0), 5, ("size",)).public == Weights().public


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"inside has shape \(2, 2\).*must be \(1, 1\)"):
        evidence(valid=np.ones((1, 2), bool))
    with pytest.raises(ValueError, match=r"scorer has shape \(3,\)"):
        evidence(scorer=np.zeros(3))
