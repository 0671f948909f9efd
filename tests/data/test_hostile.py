"""Strings that broke other verifiers, against every verifier here: no exception, no hang, no reward, no side
effect.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import Task, Verdict, build_task
from data.verify.choice import judge_choice
from data.verify.math import read_answer
from data.verify.string import judge_string

MARK = Path("/tmp/sagax_hostile_mark")
BOMB = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}"
ATTACKS = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{10000000!}",
    r"\boxed{" + BOMB + "}",
    r"\boxed{" * 5000,
    r"\boxed{23}\boxed{24",
    r"\boxed{\{23,24\}}",
    f"__import__('os').system('touch {MARK}')",
    rf"\boxed{{__import__('os').system('touch {MARK}')}}",
    rf"$\text{{__import__('os').system('touch {MARK}')}}$",
    f"#### __import__('os').system('touch {MARK}')",
    "9**9**9**9",
    "1.5*2",
    "7//2",
    "2**3",
    "1e999999",
    "#### 1e999999",
    "#### nan",
    "#### inf",
    "#### " + "9" * 10_000_000,
    "9" * 10_000_000,
    "9," * 1_000_000,
    "#### " + "1/" * 1_000_000,
    "(" * 1_000_000,
    "-" * 1_000_000 + "1",
    "1+" * 1_000_000 + "1",
    "1/0",
    "#### 1/0",
    "<think>" * 100_000,
    "</think>" * 100_000,
    "####" * 100_000,
    "<think></think>",
    "<answer></answer>",
    "٣٤٥",
    "#### ٣",
    "\x00" * 1000,
    "\ud800",
    "a" * 10_000_000,
    "|" * 100_000,
    "4:4|" + "(" * 100_000,
]
TASKS: list[tuple[Task, dict[str, Any]]] = [
    (build_task("addition"), {"a": 1, "b": 2, "think": False}),
    (build_task("countdown"), {"numbers": [1, 5, 2], "target": 3, "expression": "5-2*1"}),
    (build_task("general_points"), {"ranks": [3, 2, 1, 9], "rule": "ten"}),
    (build_task("gsm8k", path="unused"), {"question": "?", "answer": "#### 4321"}),
    (build_task("gsm8k", path="unused", strict=True), {"question": "?", "answer": "#### 4321"}),
    (build_task("languages", length=5), {"domain": 0, "text": "abcde"}),
]
TASKS += [
    (task, task.examples("test")[0])
    for task in (
        build_task("multiplication", digits=2),
        build_task("prosqa"),
        build_task("prontoqa"),
        build_task("automaton"),
        build_task("planted"),
    )
]
NAMES = ["addition", "countdown", "general_points", "gsm8k", "gsm8k strict", "languages"]
NAMES += ["multiplication", "prosqa", "prontoqa", "automaton", "planted"]
pairs = pytest.mark.parametrize(("task", "example"), TASKS, ids=NAMES)


def judge(task: Task, example: dict[str, Any], text: str) -> Verdict:
    start = time.perf_counter()
    verdict = task.verify(example, text)
    assert time.perf_counter() - start < 2.0
    assert 0.0 <= verdict.score <= 1.0
    assert verdict.reason
    assert verdict.parsed is None or isinstance(verdict.parsed, str)
    return verdict


@pairs
@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_attacks_earn_nothing(task: Task, example: dict[str, Any], attack: str) -> None:
    assert judge(task, example, attack).score == 0.0
    assert not MARK.exists()


@pairs
@settings(max_examples=100)
@given(text=st.text() | st.text(alphabet="0123456789+-*/()=#| \\boxed{}.,eE$", max_size=200))
def test_no_text_raises(task: Task, example: dict[str, Any], text: str) -> None:
    judge(task, example, text)


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_the_graded_reward_is_never_positive_for_attacks(attack: str) -> None:
    task, example = TASKS[2]
    reward, kinds = task.reward(example, attack)  # type: ignore[attr-defined]
    assert reward < 0
    assert kinds


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_readers_of_choices_texts_and_boxes_hold(attack: str) -> None:
    start = time.perf_counter()
    for verdict in (judge_choice("B", attack), judge_string("4321", attack)):
        assert (verdict.score, bool(verdict.reason)) == (0.0, True)
    found = read_answer(attack)
    assert (found.text is None) == bool(found.reason)
    assert time.perf_counter() - start < 2.0
