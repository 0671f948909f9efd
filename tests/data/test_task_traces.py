"""Tasks of traces: sums in two alphabets and of two lengths, walks through the search trees of Countdown."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest

from data.tasks import build_task
from data.verify.arithmetic import evaluate

STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)(x?)")


def test_sums_in_two_alphabets() -> None:
    task = build_task("traced_addition", digits=2, direct_share=0.0, foreign_share=0.5)
    examples = task.examples("train")[:300]
    texts = [task.target(example) for example in examples]
    assert all(task.verify(example, text).score == 1 for example, text in zip(examples, texts, strict=True))
    steps = [step for text in texts for step in text[7:].split("</think>")[0].split(",")]
    letters = [bool(set(step) & set("abcdefghij")) for step in steps]
    assert 0.4 < sum(letters) / len(letters) < 0.6
    assert not any(set(step) & set("abcdefghij") and set(step) & set("0123456789") for step in steps)
    clean = build_task("traced_addition", digits=2, direct_share=0.0)
    assert clean.target({"a": 12, "b": 34, "think": True}) == "<think>2+4+0=6,1+3+0=4</think>46"
    assert set("".join(texts)) <= {*task.alphabet, *"<think>/"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>1+2=3</think>3", (True, True)),
        ("<think>b+c=d</think>3", (True, False)),
        ("1+2=3,3", (False, False)),
        ("x<think>1</think>3", (False, False)),
        ("<think></think>3", (False, False)),
        ("<think>1+2", (False, False)),
    ],
)
def test_parts_of_a_text(text: str, wanted: tuple[bool, bool]) -> None:
    parts = build_task("traced_addition").parts({}, text)
    assert (parts["thinks"], parts["one_alphabet"]) == wanted


def test_long_sums_are_checked_and_have_dead_ends() -> None:
    task = build_task("traced_addition", digits=2, direct_share=0.0, long_share=1.0)
    steps = [s for e in task.examples("train")[:200] for s in task.target(e)[7:].split("</think>")[0].split(",")]
    for step in steps:
        *wrong, last = step.split("!")
        total, check = last.split("?")
        left, right = total.split("=")
        assert sum(map(int, left.split("+"))) == int(right)
        minuend, difference = check.split("=")
        first, *others = map(int, minuend.split("-"))
        assert first == int(right) and first - sum(others) == int(difference)
        assert all(sum(map(int, part.split("=")[0].split("+"))) != int(part.split("=")[1]) for part in wrong)
    share = sum("!" in step for step in steps) / len(steps)
    assert 0.4 < share < 0.6
    untagged = build_task("traced_addition", digits=2, direct_share=0.0, untagged_share=1.0)
    example = untagged.examples("train")[0]
    assert untagged.verify(example, untagged.target(example)).score == 0


def left_after(numbers: list[int], steps: list[str]) -> Counter[int]:
    """The numbers left after a walk, each of whose steps is checked."""
    pool = Counter(numbers)
    for step in steps:
        match = STEP.fullmatch(step)
        assert match, step
        x, sign, y, value = int(match[1]), match[2], int(match[3]), int(match[4])
        assert Fraction(value) == {"+": x + y, "-": x - y, "*": x * y, "/": Fraction(x, y or 1)}[sign]
        pool.subtract([x, y])
        assert min(pool.values()) >= 0
        pool[value] += 1
    return +pool


def test_journeys_walk_the_tree_with_bounded_wrong_turns() -> None:
    task = build_task("journeys", wrong_turns=2)
    turns = []
    for example in task.examples("train")[:150]:
        text = task.target(example)
        thought, _, answer = text.removeprefix("<think>").partition("</think>")
        assert task.verify(example, text).score == 1
        assert evaluate(answer).value == example["target"]
        steps = thought.split(";")
        turns.append(sum(step.endswith("x") for step in steps))
        assert STEP.fullmatch(steps[-1]) and steps[-1].endswith(f"={example['target']}")
    assert max(turns) <= 4 and 0 < sum(turns) / len(turns) < 4, "two nodes, two wrong turns each"


def test_shortcuts_of_the_same_trees() -> None:
    task = build_task("journeys", wrong_turns=0)
    for example in task.examples("train")[:100]:
        steps = task.target(example).removeprefix("<think>").partition("</think>")[0].split(";")
        assert left_after(example["numbers"], steps) == Counter([example["target"]])


@pytest.mark.parametrize("options", [{"wrong_turns": 9}, {"max_numbers": 4}])
def test_walks_that_are_not_written(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"wrong_turns lies in 0\.\.8 and max_numbers is at most 3"):
        build_task("journeys", **options)
