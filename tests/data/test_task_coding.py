"""MBPP and HumanEval: rows, prompts, the consent to run code, and verdicts, on tiny files and on the real ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.tasks import build_task
from data.verify.confined import unavailable
from data.verify.pool import judge_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the files of code problems are not in {SHARED}")
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")
MBPP = {
    "text": "Write a function to add one. ",
    "code": "def helper(x):\r\n\treturn x\r\ndef inc(x):\r\n\treturn helper(x) + 1",
    "task_id": 11,
    "test_setup_code": "",
    "test_list": ["assert inc(1) == 2", "assert inc(5) == 6", "assert inc(-1) == 0"],
}
HUMANEVAL = {
    "task_id": "Python/0",
    "prompt": 'import math\n\ndef double(x):\n    return 2 * x\n\n\ndef f(x):\n    """ Twice the floor. """\n',
    "canonical_solution": "    return double(math.floor(x))\n",
    "test": "def check(f):\n    assert f(1.5) == double(1)\n    assert f(2.5) == 4\n\ncheck(f)",
}


def write(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_code_is_not_run_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=f"{name} runs code that a model wrote: give allow_code=True"):
        build_task(name, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{name} needs path"):
        build_task(name, allow_code=True)
    with pytest.raises(ValueError, match="Did you mean 'none'"):
        build_task(name, path=str(tmp_path), allow_code=True, isolation="nonee")


@works
def test_rows_prompts_and_demonstrations_of_mbpp(tmp_path: Path) -> None:
    rows = [MBPP, MBPP | {"task_id": 12, "test_setup_code": "x = Node()"}, MBPP | {"task_id": 700}]
    task = build_task("mbpp", path=write(tmp_path, "mbpp.jsonl", *rows), allow_code=True)
    (row,) = task.examples("test")
    assert row["names"] == ["inc"] and len(task.examples("train")) == 1
    assert "inc(1) == 2" in task.prompt(row) and "inc(5)" not in task.prompt(row)
    hidden = build_task("mbpp", path=str(tmp_path), allow_code=True, shown=0)
    assert "inc(1)" not in hidden.prompt(row) and "called inc" in hidden.prompt(row)


@works
def test_rows_without_a_tested_function_are_named(tmp_path: Path) -> None:
    task = build_task("mbpp", path=write(tmp_path, "mbpp.jsonl", MBPP | {"code": "x = 1"}), allow_code=True)
    with pytest.raises(ValueError, match=r"mbpp\.jsonl, row 1: no test calls a function"):
        task.examples("test")


@works
def test_answers_are_judged_in_workers(tmp_path: Path) -> None:
    task = build_task("mbpp", path=write(tmp_path, "mbpp.jsonl", MBPP), allow_code=True, seconds=4.0)
    (row,) = task.examples("test")
    texts = [
        task.target(row),
        "<think>```\nno\n```</think>So:\n```python\ninc = lambda x: x + 1\n```",
        "def inc(x): return 2",
        "import sys\nsys.exit(0)",
        "<think>" + task.target(row) + "</think>I do not know.",
    ]
    with judge_of(task, workers=1, seconds=20.0) as judge:
        assert [verdict.score for verdict in judge([row] * 5, texts)] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert task.verify(row, task.target(row)).score == 1.0
    with pytest.raises(ValueError, match="give the pool more"):
        judge_of(task, seconds=4.0)


@works
def test_humaneval_takes_the_whole_function_or_its_rest(tmp_path: Path) -> None:
    task = build_task("humaneval", path=write(tmp_path, "humaneval-python.jsonl", HUMANEVAL), allow_code=True)
    (row,) = task.examples("test")
    cheat = "def double(x):\n    return 0\ndef f(x):\n    return 0"
    texts = [
        task.target(row),
        HUMANEVAL["canonical_solution"],
        "```python\ndef f(x):\n    return 2 * int(x)\n```",
        cheat,
    ]
    with judge_of(task, workers=1, seconds=20.0) as judge:
        assert [verdict.score for verdict in judge([row] * 4, texts)] == [1.0, 1.0, 1.0, 0.0]


@works
@needs_data
@pytest.mark.parametrize(("name", "size"), [("mbpp", 499), ("humaneval", 164)])
def test_references_of_the_real_sets_pass(name: str, size: int) -> None:
    task = build_task(name, path=str(SHARED / name), allow_code=True, seconds=8.0)
    examples = task.examples("test")
    assert len(examples) == size
    some = list(examples[:: size // 8])
    with judge_of(task, workers=2, seconds=30.0) as judge:
        assert all(verdict.score == 1.0 for verdict in judge(some, [task.target(row) for row in some]))
        assert not any(verdict.score for verdict in judge(some[:2], ["pass", "def f(): pass"]))
