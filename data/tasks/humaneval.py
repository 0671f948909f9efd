"""HumanEval (2107.03374): Python functions from a signature and a docstring, judged by assertions."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.sources.examples import Example, read_jsonl
from data.tasks.base import check_split
from data.tasks.coding import CodingTask, text_field

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
