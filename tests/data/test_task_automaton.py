"""The automaton: its rule against a table, the dial, splits, and verdicts."""

import json
from typing import Any

import pytest

from data.tasks import build_task
from data.tasks.automaton import Automaton


def by_hand(row: str) -> str:
    """Rule 86: a bit is flipped if one of the two left of it is set."""
    bits = [0, 0, *map(int, row)]
    return "".join(str(bits[i + 2] ^ (bits[i] | bits[i + 1])) for i in range(len(row)))


def test_prompts_and_answers() -> None:
    task = Automaton(width=8)
    assert task.prompt({"row": "01000000", "steps": 2}) == "2:01000000="
    assert by_hand("01000000") == "01110000"
    for row in ("01000000", "11011010", "00000000"):
        assert task.target({"row": row, "steps": 1}) == by_hand(row)
        assert task.target({"row": row, "steps": 3}) == by_hand(by_hand(by_hand(row)))
    assert Automaton(width=8, rule=0).target({"row": "11111111", "steps": 1}) == "00000000"
    assert Automaton(width=8, rule=170).target({"row": "01101001", "steps": 5}) == "01101001", (
        "170 keeps the bit itself"
    )
    assert Automaton(width=8, rule=204).target({"row": "01101001", "steps": 1}) == "00110100", "204 moves the row on"


def test_steps_are_the_dial_and_the_answer_is_all_that_counts() -> None:
    task = Automaton(max_steps=3, test_min_steps=5, test_max_steps=6)
    train, test = (task.examples(split)[:200] for split in ("train", "test"))
    assert {row["steps"] for row in train} == {1, 2, 3}
    assert {row["steps"] for row in test} == {5, 6}
    for row in [*train, *test]:
        answer = task.target(row)
        assert set(task.prompt(row) + answer) <= set(task.alphabet)
        assert json.loads(json.dumps(row)) == row
        wrong = answer[:-1] + "10"[int(answer[-1])]
        assert task.verify(row, answer).score == 1
        assert [task.verify(row, text).score for text in (wrong, answer + "0", answer[1:], "", " " + answer)] == [0] * 5


def test_splits_share_no_row_and_depend_on_the_seed_alone() -> None:
    task: Any = build_task("automaton", width=8)
    seen = {split: {row["row"] for row in task.examples(split)[:2000]} for split in ("train", "valid", "test")}
    assert not (seen["train"] & seen["test"] or seen["train"] & seen["valid"] or seen["valid"] & seen["test"])
    assert len(seen["train"]) > 180
    assert Automaton(seed=1).examples("train")[:5] == Automaton(seed=1).examples("train")[:5]
    assert Automaton(seed=1).examples("train")[:5] != Automaton(seed=2).examples("train")[:5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": 256}, "rule must lie in 0..255"),
        ({"width": 7}, "width must lie in 8..256"),
        ({"max_steps": 0}, "got 1 and 0"),
        ({"test_max_steps": 100}, "got 1 and 100"),
        ({"step": 3}, "unknown option of task 'automaton' 'step'"),
    ],
)
def test_wrong_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task("automaton", **options)
