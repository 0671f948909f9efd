"""Clusters and their scores: what counts is what validators accept, equal outputs are one cluster, penalties count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.strategies.clusters import (
    FAILED,
    Weights,
    cluster_scores,
    clusters,
    kept_inputs,
    numbered,
    sample_scores,
)


def test_outputs_are_numbered_by_what_they_are() -> None:
    numbers = numbered([["a", "b", None], ["b", "a", "a"]])
    assert numbers.tolist() == [[0, 1, FAILED], [1, 0, 0]]
    assert numbered([[], []]).shape == (2, 0)


def test_one_wrong_validator_of_four_changes_nothing() -> None:
    right = np.array([True, True, False, False])
    for says in (~right, right, np.array([True, False, True, False])):
        accepted = np.stack([right, right, right, says])
        assert kept_inputs(accepted).tolist() == right.tolist()
    two_wrong = np.stack([right, right, ~right, ~right])
    assert not kept_inputs(two_wrong).any(), "half of them are not three quarters"
    assert kept_inputs(two_wrong, 0.5).all()
    with pytest.raises(ValueError, match="without a validator"):
        kept_inputs(np.zeros((0, 4), bool))


@given(st.lists(st.lists(st.integers(-1, 2), min_size=3, max_size=3), min_size=1, max_size=12))
def test_a_cluster_agrees_on_all_inputs(rows: list[list[int]]) -> None:
    found = clusters(np.array(rows))
    assert sorted(set(found.tolist())) == list(range(found.max() + 1))
    for i, one in enumerate(rows):
        assert [found[i] == found[j] for j in range(len(rows))] == [one == other for other in rows]


def test_without_an_input_all_are_one_cluster() -> None:
    assert clusters(np.zeros((3, 0), int)).tolist() == [0, 0, 0]


def test_scores_by_hand() -> None:
    weights = Weights(scorer=2.0, errors=4.0, public=8.0, size=1.0, repeated=0.5)
    scores = sample_scores(np.array([1.0, 1.0, 0.5]), np.array([0.0, 0.25, 0.0]), np.array([0.0, 0.0, 0.5]), weights)
    assert scores.tolist() == [2.0, 1.0, -3.0]
    found = cluster_scores(scores, np.array([0, 0, 1]), np.array([0, 2]), weights)
    np.testing.assert_allclose(found, [1.5 + 2 / 3, -3.0 + 1 / 3 - 1.0])
