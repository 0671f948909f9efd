"""HumanEval (2107.03374): Python functions from a signature and a docstring, judged by assertions."""

import ast
import doctest
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.sources.examples import Example, read_jsonl
from data.tasks.base import check_split
from data.tasks.coding import CodingTask, text_field
from data.verify.inputs import first_call, parse

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class HumanEval(CodingTask):
    """The 164 problems, all of them the split `test`. `path`: the folder with `humaneval-python.jsonl`.

    An answer is the whole function, or the rest of the one that the prompt begins.
    """

    name = "humaneval"
    splits = ("test",)

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"problem", "code", "tests", "names", "task_id"}`; FileNotFoundError for a missing file."""
        check_split("humaneval", split, self.splits)
        return _rows(self.path)

    def prompt(self, example: Example) -> str:
        """Returns the beginning of the function."""
        return str(example["problem"])

    def solution(self, example: Example, text: str) -> str:
        """Returns the prompt's code with the answer's function, or with the answer as its rest."""
        code = super().solution(example, text)
        whole = f"def {example['names'][0]}(" in code
        return f"{example['problem']}{'    pass' if whole else ''}\n{code}" if whole else example["problem"] + code

    def public(self, example: Example) -> Example | None:
        """Returns the example with the calls of its docstring as tests; None where it has none in doctest's form."""
        found = doctest.DocTestParser().get_examples(example["problem"])
        tests = [f"assert {each.source.strip()} == {each.want.strip()}" for each in found]
        shown = [test for test in tests if _readable(test) and first_call(test, example["names"])]
        return example | {"tests": "\n".join(shown)} if shown else None

    def inputs(self, example: Example, rng: np.random.Generator, count: int) -> list[Any]:
        """Returns so many inputs like the first one of the docstring; none where it has no calls."""
        public = self.public(example)
        return [] if public is None else super().inputs(public, rng, count)


def _readable(test: str) -> bool:
    try:
        parse(test)
    except SyntaxError:
        return False
    return True


@lru_cache(maxsize=4)
def _rows(path: str) -> list[Example]:
    rows = read_jsonl(Path(path) / "humaneval-python.jsonl", ("prompt", "canonical_solution", "test", "task_id"))
    return [_example(row) for row in rows]


def _example(row: dict[str, Any]) -> Example:
    problem = text_field(row, "prompt")
    *before, entry = ast.parse(f"{problem}    pass\n").body
    if not isinstance(entry, FUNCTIONS):
        raise ValueError(f"{row['task_id']}: the prompt does not end in a function")
    # What the prompt defines before the function, the tests may use: there it is the data set's, not the model's.
    helpers = ast.unparse(ast.Module(before, []))
    return {
        "problem": problem,
        "code": problem + text_field(row, "canonical_solution"),
        "tests": f"{helpers}\n{text_field(row, 'test')}",
        "names": [entry.name],
        "task_id": row["task_id"],
    }
