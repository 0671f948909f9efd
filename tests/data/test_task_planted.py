"""The planted subsequence: prompts, demonstrations of the scripted mixtures, returns, and verdicts on hostile text."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import build_task
from data.tasks.planted import BASES, Planted

EXAMPLE = {"digits": "3142", "draw": 7}


def test_prompt_block_and_returns_by_hand() -> None:
    task = Planted(horizon=10)
    assert (task.prompt(EXAMPLE), task.block(EXAMPLE)) == ("3142=", "6475")
    for text, earned in (
        ("a6475", 6),
        ("a647599999", 6),
        ("a999996475", 1),
        ("a9999964756475", 1),
        ("a9999996475", 0),
        ("a64756475", 6),
        ("6475", 7),
        ("a647", 0),
        ("a6 475", 0),
        ("", 0),
    ):
        assert task.earned(EXAMPLE, text) == earned, text
        assert task.verify(EXAMPLE, text).score == pytest.approx(earned / 10)


@pytest.mark.parametrize("base", BASES)
def test_demonstrations_are_of_the_mixture(base: str) -> None:
    task = Planted(horizon=24, base=base)
    rows = task.examples("train")[:300]
    answers = [task.target(row) for row in rows]
    assert answers == [task.target(row) for row in rows], "an example has one demonstration"
    styles = {answer[0] for answer in answers}
    assert len(styles) == len(BASES[base])
    for row, answer in zip(rows, answers, strict=True):
        assert len(answer) == 24 and set(task.prompt(row) + answer) <= set(task.alphabet)
        block = task.block(row)
        assert block not in answer or not set(answer.partition(block)[2]) & set(block)
        assert json.loads(json.dumps(row)) == row


def test_rewards_of_point_are_all_the_same_and_a_style_waits() -> None:
    task = Planted(horizon=12, base="point")
    assert {task.earned(row, task.target(row)) for row in task.examples("train")[:100]} == {6}
    low = Planted(horizon=12, base="low")
    found = [low.target(row).find(low.block(row)) for row in low.examples("train")[:300]]
    assert min(place for place in found if place >= 0) == 2, "a letter and a filler stand before it"


def test_only_correct_traces_where_they_are_asked_for() -> None:
    task = Planted(horizon=8, correct=True)
    rows = task.examples("train")[:100]
    assert all(task.verify(row, task.target(row)).score > 0 for row in rows)
    free = Planted(horizon=8)
    assert 5 < sum(free.verify(row, free.target(row)).score > 0 for row in rows) < 60


def test_no_prompt_is_in_two_splits_whatever_the_seed() -> None:
    found = {
        split: {row["digits"] for seed in (0, 1) for row in Planted(seed=seed).examples(split)[:400]}
        for split in ("train", "valid", "test")
    }
    assert not found["train"] & found["test"] and not found["valid"] & (found["train"] | found["test"])
    first, again, other = (Planted(seed=seed).examples("train")[:20] for seed in (1, 1, 2))
    assert first == again and first != other


@settings(max_examples=30)
@given(st.text())
def test_no_text_raises(text: str) -> None:
    verdict = Planted().verify(EXAMPLE, text)
    assert 0 <= verdict.score <= 1 and verdict.reason


def test_wrong_options_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"base": "hig"}, "Did you mean 'high'"),
        ({"keys": 2}, r"keys must lie in 3\.\.9"),
        ({"horizon": 6, "base": "point"}, "horizon must be at least 7"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            build_task("planted", **options)
