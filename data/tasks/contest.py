"""Problems of programming contests in the rows of rllm: whole programs, or methods of a class `Solution`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.chat import after_thinking
from data.names import unknown_name
from data.sources.examples import Example
from data.tasks.base import Verdict, check_split
from data.tasks.coding import CodingTask, plain_text, text_field
from data.verify.code import judge_program
from data.verify.inputs import texts_like
from data.verify.outputs import program_outputs
from data.verify.pool import inside_worker, judge_alone
from store.files import read_json

FILES: Mapping[str, tuple[str, ...]] = {
    "codeforces": ("test",),
    "code_contests": ("test",),
    "leetcode": ("train", "test"),
}
# What LeetCode has imported before a solution begins.
PRELUDE = """from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
ENTRY = "candidate"
_CHECKED = re.compile(r"^check\(Solution\(\)\.(\w+)\)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Contest(CodingTask):
    """`source`: codeforces or code_contests, whose answers are programs that read standard input, or leetcode, whose
    answers are methods.

    `path`: rllm's data folder, with `test/code/<source>.json`. `shown`: how many tests of a program stand in its
    prompt, if others remain by which it is judged; LeetCode's prompts are shown as they are.
    """

    source: str = "codeforces"
    shown: int = 1

    name = "contest"
    splits = ("train", "test")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in FILES:
            raise unknown_name("source of task 'contest'", self.source, FILES)

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"problem", "cases"}`, or `{"problem", "code", "tests", "names"}`; FileNotFoundError for a missing
        file.
        """
        check_split(f"contest of {self.source}", split, FILES[self.source])
        return _rows(str(Path(self.path) / split / "code" / f"{self.source}.json"))

    def prompt(self, example: Example) -> str:
        """Returns the problem, the cases that are shown, and the request for a fenced block."""
        if "cases" not in example:
            return f"{example['problem']}\n"
        shown = "".join(f"Input:\n{given}\nOutput:\n{wanted}\n" for given, wanted in self._shown(example))
        return f"{example['problem']}\n{shown}Answer with a Python program in one ``` block.\n"

    def target(self, example: Example) -> str:
        """Returns the reference solution; ValueError where the data set has none."""
        if "code" not in example:
            raise ValueError(f"{self.source} has no reference solutions to imitate: sample answers and keep right ones")
        return super().target(example)

    def solution(self, example: Example, text: str) -> str:
        """Returns the code of an answer; a method's with what LeetCode imports, and its name as a function."""
        code = super().solution(example, text)
        return code if "cases" in example else f"{PRELUDE}{code}\n{example['entry']}"

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when every case, or the test, passes with the code after the last `</think>`."""
        if not inside_worker():
            return judge_alone(self, example, text)
        if "cases" not in example:
            return super().verify(example, text)
        code = self.solution(example, after_thinking(text))
        return judge_program(code, example["cases"], self.limits, self.isolation)

    def public(self, example: Example) -> Example | None:
        """Returns the example with those cases alone that its prompt shows; None where it shows none."""
        shown = self._shown(example) if "cases" in example else []
        return example | {"cases": shown} if shown else None

    def inputs(self, example: Example, rng: np.random.Generator, count: int) -> list[Any]:
        """Returns so many inputs like the one of the first test; its output is not looked at."""
        if "cases" not in example:
            return super().inputs(example, rng, count)
        return texts_like(rng, example["cases"][0][0], count)

    def outputs(self, example: Example, text: str, inputs: Sequence[Any]) -> list[str | None]:
        """Returns what an answer gives for each of these inputs, in the sandbox; None where it gives nothing."""
        if "cases" not in example:
            return super().outputs(example, text, inputs)
        return program_outputs(self.solution(example, after_thinking(text)), inputs, self.limits, self.isolation)

    def _shown(self, example: Example) -> list[list[str]]:
        cases: list[list[str]] = example["cases"]
        return cases[: min(self.shown, len(cases) - 1)]


@lru_cache(maxsize=4)
def _rows(path: str) -> list[Example]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; put rllm's files there or give another path")
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of problems, found {type(rows).__name__}")
    return [_example(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _example(where: str, row: Any) -> Example:
    if not isinstance(row, dict) or "problem" not in row or not isinstance(row.get("tests"), dict | list):
        raise ValueError(f"{where}: expected an object with problem and tests")
    problem, tests = text_field(row, "problem").strip(), row["tests"]
    if isinstance(tests, dict) and "functional" in tests:
        return _method(where, problem, row, plain_text(tests["functional"]))
    if isinstance(tests, dict):
        cases = [list(pair) for pair in zip(tests["inputs"], tests["outputs"], strict=True)]
    else:
        cases = [[case["input"], case["output"]] for case in tests]
    if not cases:
        raise ValueError(f"{where}: a problem without a test")
    return {"problem": problem, "cases": cases}


def _method(where: str, problem: str, row: dict[str, Any], check: str) -> Example:
    called = _CHECKED.search(check)
    if called is None:
        raise ValueError(f"{where}: the test does not end in check(Solution().<method>)")
    return {
        "problem": problem,
        "code": text_field(row, "solutions"),
        "tests": f"{check[: called.start()]}\ncheck({ENTRY})",
        "names": [ENTRY],
        "entry": f"def {ENTRY}(*values, **named):\n    return Solution().{called[1]}(*values, **named)\n",
    }
