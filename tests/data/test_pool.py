"""The pool of verifier processes: order, wall clock, deaths, and that nothing outlives what started it."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.tasks import Verdict, build_task
from data.verify.pool import InProcess, Judge, Pool, inside_worker, judge_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARENT = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from judged_tasks import Obedient
from data.verify.pool import Pool
pool = Pool(Obedient({notes!r}), workers=2, seconds=600.0)
pool([{{"name": ""}}] * 2, ["hang", "grind"])
"""


@pytest.fixture(scope="module")
def tasks() -> Iterator[Any]:
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("judged_tasks")
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def pool(tasks: Any) -> Iterator[Judge]:
    with judge_of(tasks.Obedient(), workers=2, seconds=1.5, memory=1 << 30) as judge:
        yield judge


def named(texts: list[str]) -> list[dict[str, str]]:
    return [{"name": str(n)} for n in range(len(texts))]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_verdicts_come_in_order_from_several_processes(pool: Judge) -> None:
    texts = ["right", "nap", "wrong", "right", "nap"] * 4
    verdicts = pool(named(texts), texts)
    assert [verdict.score for verdict in verdicts] == [float(text == "right") for text in texts]
    numbers, pids = zip(*(str(verdict.parsed).split() for verdict in verdicts), strict=True)
    assert list(numbers) == [str(n) for n in range(20)]
    assert len(set(pids)) == 2 and str(os.getpid()) not in pids


@pytest.mark.parametrize(
    ("text", "reason", "count"),
    [
        ("hang", "timeout", "timeouts"),
        ("grind", "timeout", "timeouts"),
        ("exit", "the verifier died (exit status 3)", "deaths"),
        ("crash", "the verifier died (by SIGABRT)", "deaths"),
        ("hoard", "the verifier died (out of memory)", "deaths"),
        ("raise", "the verifier raised KeyError: '1'", "errors"),
        ("two", "the verifier gave a score that is not in 0..1: 2.0", None),
    ],
)
def test_whatever_goes_wrong_scores_nothing_and_the_rest_is_judged(
    pool: Judge, text: str, reason: str, count: str | None
) -> None:
    texts = ["right", text, "right", "right"]
    before = pool.counts()
    verdicts = pool(named(texts), texts)
    assert verdicts[1] == Verdict(0.0, None, reason)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 1.0]
    expected = before | {"checks": before["checks"] + 4} | ({count: before[count] + 1} if count else {})
    assert pool.counts() == expected


def test_a_worker_that_writes_nonsense_scores_nothing(pool: Judge) -> None:
    """It is killed when the nonsense is read as an answer, or at the wall clock when it looks like half of one."""
    texts, before = ["right", "babble", "right", "right"], pool.counts()
    verdicts = pool(named(texts), texts)
    assert verdicts[1].reason in ("the verifier died (killed)", "timeout")
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 1.0]
    after = pool.counts()
    assert after["deaths"] + after["timeouts"] == before["deaths"] + before["timeouts"] + 1


def test_the_others_go_on_while_one_is_stuck(tasks: Any) -> None:
    with Pool(tasks.Obedient(), workers=2, seconds=2.0) as judge:
        judge.wait()
        texts = ["grind"] + ["right"] * 200
        start = time.perf_counter()
        verdicts = judge(named(texts), texts)
        seconds = time.perf_counter() - start
    assert verdicts[0].reason == "timeout"
    assert all(verdict.score == 1.0 for verdict in verdicts[1:])
    assert len({str(verdict.parsed).split()[1] for verdict in verdicts[1:]}) == 1
    assert seconds < 3.8


def test_a_dead_worker_is_replaced_even_when_it_died_idle(tasks: Any) -> None:
    with Pool(tasks.Obedient(), workers=1, seconds=10.0) as judge:
        first = judge(named(["right"]), ["right"])[0]
        os.kill(int(str(first.parsed).split()[1]), signal.SIGKILL)
        time.sleep(0.1)
        second = judge(named(["right"]), ["right"])[0]
        assert second.score == 1.0 and second.parsed != first.parsed
        assert judge.deaths == 0


def test_a_killed_worker_takes_its_children_along(tasks: Any, tmp_path: Path) -> None:
    with Pool(tasks.Obedient(str(tmp_path)), workers=1, seconds=0.5) as judge:
        assert judge(named(["hang"]), ["hang"])[0].reason == "timeout"
    pids = [int(file.name) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    assert until(lambda: all(map(gone, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a pipe's end is tried on Linux only")
def test_workers_do_not_outlive_their_parent(tasks: Any, tmp_path: Path) -> None:
    program = PARENT.format(here=str(HERE), root=str(ROOT), notes=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        assert until(lambda: len(list(tmp_path.iterdir())) == 3, 60.0)
        parent.kill()
    pids = [int(file.name) for file in tmp_path.iterdir()]
    assert until(lambda: all(map(gone, pids)))


def test_an_interrupted_call_leaves_no_answer_for_the_next(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(tasks.Obedient(), workers=1, seconds=20.0) as judge:
        judge.wait()
        monkeypatch.setattr(judge, "_turn", lambda found: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            judge([{"name": "old"}], ["right"])
        monkeypatch.undo()
        assert str(judge([{"name": "new"}], ["right"])[0].parsed).startswith("new ")


@pytest.mark.parametrize(("how", "message"), [("raise", "ImportError: no module for it"), ("exit", "exit status 5")])
def test_workers_that_cannot_start_are_an_error(tasks: Any, how: str, message: str) -> None:
    with judge_of(tasks.Unready(how)) as judge, pytest.raises(RuntimeError, match=message):
        judge([{}], ["right"])


def test_workers_import_no_more_than_they_need(tasks: Any) -> None:
    with judge_of(tasks.Modules(), workers=1) as judge:
        assert judge([{}], ["jax,numpy,grain,sympy,data.sources.text"])[0].parsed == ""
    with judge_of(tasks.Late(), workers=1, seconds=60.0) as judge:
        assert judge([{}], [""])[0].score == 1.0


def test_exact_tasks_are_judged_in_this_process() -> None:
    task = build_task("addition")
    with judge_of(task) as judge:
        assert isinstance(judge, InProcess) and not inside_worker()
        example = task.examples("test")[0]
        assert [verdict.score for verdict in judge([example] * 2, [task.target(example), "no"])] == [1.0, 0.0]
        assert judge.checks == 2


def test_surrogates_and_long_texts_arrive(pool: Judge) -> None:
    assert [verdict.score for verdict in pool([{"name": "\ud800"}] * 2, ["\ud800", "x" * 10_000_000])] == [0.0, 0.0]


def test_wrong_use_is_loud(tasks: Any) -> None:
    for options in ({"workers": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="at least 1 worker"):
            Pool(tasks.Obedient(), **options)
    with Pool(tasks.Obedient(), workers=1) as judge, pytest.raises(ValueError, match="2 examples and 1 texts"):
        judge([{}, {}], ["a"])
    with pytest.raises(RuntimeError, match="closed"):
        judge([{}], ["a"])
    with pytest.raises(ValueError, match="cannot be sent to a worker"):
        Pool(tasks.Obedient(notes=lambda: None))
