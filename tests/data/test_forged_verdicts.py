"""What a worker may say to its pool; everything else costs the worker its life, and no other answer its score."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.tasks import Verdict
from data.verify.pool import Judge, judge_of

HERE = Path(__file__).parent
GOOD = ["verdict", "NUMBER", 1.0, None, "forged"]
FORGERIES: dict[str, list[Any]] = {
    "a verdict without anything": [["verdict"]],
    "a fault without anything": [["raised"]],
    "without a number": [["verdict", 1.0, None, "forged"]],
    "one part too many": [[*GOOD, "more"]],
    "one part too few": [GOOD[:-1]],
    "a fault with two texts": [["raised", "NUMBER", "a", "b"]],
    "a fault that is no text": [["raised", "NUMBER", 5]],
    "a number that was never asked": [["verdict", 7, *GOOD[2:]]],
    "a number that is a text": [["verdict", "7", *GOOD[2:]]],
    "a number that is true": [["verdict", True, *GOOD[2:]]],
    "a number with a fraction": [["verdict", 7.0, *GOOD[2:]]],
    "no number": [["verdict", None, *GOOD[2:]]],
    "two verdicts": [GOOD, GOOD],
    "three verdicts": [GOOD, GOOD, GOOD],
    "a verdict and a fault": [GOOD, ["raised", "NUMBER", "x"]],
    "a verdict and half of one": [GOOD, b"\0\0"],
    "a score that is true": [["verdict", "NUMBER", True, None, "x"]],
    "a score that is a text": [["verdict", "NUMBER", "1.0", None, "x"]],
    "a score that is whole": [["verdict", "NUMBER", 1, None, "x"]],
    "no score": [["verdict", "NUMBER", None, None, "x"]],
    "a list of scores": [["verdict", "NUMBER", [1.0], None, "x"]],
    "a number was read": [["verdict", "NUMBER", 1.0, 5, "x"]],
    "a list was read": [["verdict", "NUMBER", 1.0, ["x"], "x"]],
    "no reason": [["verdict", "NUMBER", 1.0, None, None]],
    "a reason of objects": [["verdict", "NUMBER", 1.0, None, {"x": 1}]],
    "ready again": [["ready"]],
    "failed": [["failed", "x"]],
    "an unknown word": [["hello", "NUMBER"]],
    "a word that is a list": [[["verdict"], "NUMBER"]],
    "an object": [{"verdict": 1.0}],
    "a number alone": [5],
    "nothing in it": [[]],
    "null": [None],
    "deep": [b"\0\1\x86\xa0" + b"[" * 100_000],
    "no UTF-8": [b"\0\0\0\4\xff\xfe[\0"],
    "UTF-16": [b"\0\0\0\6\xff\xfe[\0]\0"],
    "an empty message": [b"\0\0\0\0"],
    "a message of 4 GiB": [b"\xff\xff\xff\xff" + b"x" * 1000],
    "a message just too long": [b"\0\x10\0\1" + b" " * (1 << 20) + b"5"],
    "a whole number of many digits": [b"\0\0\x17\x70" + b"9" * 6000],
}


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("judged_tasks")
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def pool(tasks: Any) -> Iterator[Judge]:
    with judge_of(tasks.Forger(), workers=1, seconds=5.0) as judge:
        yield judge


@pytest.fixture(scope="module")
def careless(tasks: Any) -> Iterator[Judge]:
    with judge_of(tasks.Careless(), workers=1) as judge:
        yield judge


def rows(texts: list[str], **given: Any) -> list[dict[str, Any]]:
    return [{"name": str(n), **given} for n in range(len(texts))]


@pytest.mark.parametrize("kind", FORGERIES, ids=str)
def test_a_forged_message_is_a_death_and_a_replacement(pool: Judge, kind: str) -> None:
    """By the first answer of a worker; the next answers, and the next call, are judged as they would have been."""
    texts, before = ["forge", "right", "wrong", "right"], pool.counts()
    verdicts = pool(rows(texts, sent=FORGERIES[kind], stays=3.0), texts)
    assert verdicts[0] == Verdict(0.0, None, "the verifier died (killed)")
    again = pool(rows(["wrong", "right"]), ["wrong", "right"])
    assert [verdict.score for verdict in (*verdicts[1:], *again)] == [1.0, 0.0, 1.0, 0.0, 1.0]
    names = [str(verdict.parsed).split()[0] for verdict in (*verdicts[1:], *again)]
    assert names == ["1", "2", "3", "0", "1"]
    assert pool.counts() == before | {"checks": before["checks"] + 6, "deaths": before["deaths"] + 1}


@pytest.mark.parametrize("after", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("kind", ["two verdicts", "a number that was never asked", "a verdict without anything"])
def test_what_is_said_too_late_costs_no_other_answer(pool: Judge, kind: str, after: float) -> None:
    """A verdict that comes after the one that was asked for, in this call or between two, is nobody's."""
    for _ in range(3):
        texts = ["right", "forge", *["right", "wrong"] * 5]
        verdicts = pool(rows(texts, sent=FORGERIES[kind], after=after), texts)
        scores = [verdict.score for verdict in verdicts]
        assert scores[0] == 1.0 and scores[2:] == [1.0, 0.0] * 5
        assert [str(verdict.parsed).split()[0] for verdict in verdicts[2:]] == [str(n) for n in range(2, 12)]


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ((float("nan"), None, "x"), "not in 0..1: nan"),
        ((float("inf"), None, "x"), "not in 0..1: inf"),
        ((-0.5, None, "x"), "not in 0..1: -0.5"),
        (("1.0", None, "x"), "raised TypeError"),
        ((None, None, "x"), "raised TypeError"),
        ((1.0, 5, "x"), "raised TypeError"),
        ((1.0, ["x"], "x"), "raised TypeError"),
        ((1.0, None, None), "raised TypeError"),
        ((1.0, {1}, b"x"), "raised TypeError"),
    ],
)
def test_a_task_that_judges_wrongly_is_told_so(careless: Judge, verdict: tuple[Any, ...], reason: str) -> None:
    sound = {"verdict": (1, "\ud800" * 100_000, "\udfff" * 100_000)}
    wrong, right = careless([{"verdict": verdict}, sound], ["", ""])
    assert wrong.score == 0.0 and reason in wrong.reason
    assert right == Verdict(1.0, "\ufffd" * 50_000, "\ufffd" * 500)
