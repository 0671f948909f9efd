"""Contests in rllm's rows: what is asked and shown, verdicts on programs and methods, outputs; the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.tasks import build_task
from data.verify.confined import unavailable
from data.verify.pool import judge_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "rllm"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"rllm's files are not in {SHARED}")
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")
CASES = [{"input": "2 3", "output": "5\n"}, {"input": "10 20\n", "output": "30"}]
SUM = {"problem": "Add two numbers.", "tests": CASES}
METHOD = {
    "problem": "Add one.\n```python\nclass Solution:\n    def inc(self, n: int) -> int:\n```",
    "solutions": "class Solution:\n    def inc(self, n: int, m: Optional[int] = None) -> int:\n        return n + 1",
    "tests": {
        "functional": "def check(candidate):\n    assert candidate(n = 4) == 5\n    assert candidate(n = 0) == 1\n\n"
        "\ncheck(Solution().inc)"
    },
}


def written(folder: Path, source: str, rows: Any) -> str:
    (folder / "test" / "code").mkdir(parents=True, exist_ok=True)
    (folder / "test" / "code" / f"{source}.json").write_text(json.dumps(rows))
    return str(folder)


@works
def test_programs_are_judged_by_all_their_cases(tmp_path: Path) -> None:
    task = build_task("contest", path=written(tmp_path, "codeforces", [SUM]), allow_code=True, seconds=4.0)
    (row,) = task.examples("test")
    assert "Input:\n2 3\nOutput:\n5\n" in task.prompt(row) and "10 20" not in task.prompt(row)
    right, shown = "print(sum(map(int, input().split())))", "print(5)"
    with judge_of(task, workers=1, seconds=20.0) as judge:
        texts = [f"So:\n```python\n{right}\n```", shown, "<think>" + right + "</think>?", "import os\nos._exit(0)"]
        assert [verdict.score for verdict in judge([row] * 4, texts)] == [1.0, 0.0, 0.0, 0.0]
        assert [verdict.score for verdict in judge([task.public(row)] * 2, [right, shown])] == [1.0, 1.0]
    inputs = task.inputs(row, np.random.default_rng(0), 6)
    assert task.outputs(row, right, inputs) == [str(sum(map(int, text.split()))) for text in inputs]
    assert len(set(inputs)) > 1 and task.outputs(row, "print(1/0)", inputs[:2]) == [None, None]
    with pytest.raises(ValueError, match="no reference solutions"):
        task.target(row)


@works
def test_a_test_that_is_alone_is_not_shown(tmp_path: Path) -> None:
    both = {"problem": "Add.", "tests": {"inputs": ["1 1"], "outputs": ["2"]}}
    task = build_task(
        "contest", path=written(tmp_path, "code_contests", [both]), source="code_contests", allow_code=True
    )
    (row,) = task.examples("test")
    assert row["cases"] == [["1 1", "2"]] and "Input:" not in task.prompt(row) and task.public(row) is None


@works
def test_methods_are_judged_by_their_values(tmp_path: Path) -> None:
    folder = written(tmp_path, "leetcode", [METHOD])
    task = build_task("contest", path=folder, source="leetcode", allow_code=True, seconds=4.0)
    (row,) = task.examples("test")
    wrong = "class Solution:\n    def inc(self, n):\n        return 5"
    with judge_of(task, workers=1, seconds=20.0) as judge:
        assert [v.score for v in judge([row] * 3, [task.target(row), wrong, "pass"])] == [1.0, 0.0, 0.0]
    inputs = task.inputs(row, np.random.default_rng(0), 5)
    assert task.outputs(row, task.target(row), inputs) == [str(given[0] + 1) for _, given in inputs]
    assert task.public(row) is None


@works
def test_what_is_no_contest_is_named(tmp_path: Path) -> None:
    common: dict[str, Any] = {"path": str(tmp_path), "allow_code": True}
    with pytest.raises(ValueError, match="Did you mean 'leetcode'"):
        build_task("contest", source="leetcod", **common)
    with pytest.raises(FileNotFoundError, match=r"codeforces\.json"):
        build_task("contest", **common).examples("test")
    with pytest.raises(ValueError, match="train"):
        build_task("contest", **common).examples("train")
    for rows, words in (
        ({}, "expected a list"),
        ([{"problem": "x"}], "row 1: expected an object with problem and tests"),
        ([SUM, {"problem": "x", "tests": []}], "row 2: a problem without a test"),
        ([{"problem": "x", "tests": {"functional": "assert True"}}], "does not end in check"),
    ):
        folder = tmp_path / words[:5]
        written(folder, "codeforces", rows)
        with pytest.raises(ValueError, match=words):
            build_task("contest", path=str(folder), allow_code=True).examples("test")


@works
@needs_data
@pytest.mark.parametrize(("source", "size"), [("codeforces", 408), ("code_contests", 165), ("leetcode", 200)])
def test_the_real_files_are_read(source: str, size: int) -> None:
    task = build_task("contest", path=str(SHARED), source=source, allow_code=True, seconds=8.0)
    examples = task.examples("test")
    assert len(examples) == size and all(task.prompt(row).strip() for row in examples)
    if source == "leetcode":
        some = list(examples[::40])
        with judge_of(task, workers=2, seconds=30.0) as judge:
            assert [verdict.score for verdict in judge(some, [task.target(row) for row in some])] == [1.0] * len(some)
        assert all(task.inputs(row, np.random.default_rng(0), 2) for row in some)
