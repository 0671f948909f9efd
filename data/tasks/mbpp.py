"""MBPP (2108.07732): short Python functions from a sentence, judged by assertions."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.sources.examples import Example, read_jsonl
from data.tasks.base import check_split
from data.tasks.coding import CodingTask, plain_text, text_field
from data.verify.inputs import parse

# The paper's parts, by task id.
SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "valid": range(511, 601),
    "train": range(601, 975),
}


@dataclass(frozen=True)
class MBPP(CodingTask):
    """The 974 problems in the paper's parts, without the few whose tests build the solution's objects themselves.

    `path`: the folder with `mbpp.jsonl`. `shown`: how many of an example's assertions stand in its prompt; those that
    do not cannot be met by repeating them.
    """

    shown: int = 1

    name = "mbpp"
    splits = tuple(SPLITS)

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"problem", "code", "tests", "names", "shown", "task_id"}`; FileNotFoundError for a missing file."""
        check_split("mbpp", split, self.splits)
        return [row for row in _rows(self.path) if row["task_id"] in SPLITS[split]]

    def prompt(self, example: Example) -> str:
        """Returns the sentence, the first assertions and the request for a fenced block."""
        shown = "\n".join(example["assertions"][: self.shown]) or f"the function is called {example['names'][0]}"
        return f"{example['problem']}\nThis must hold:\n{shown}\nAnswer with the Python code in one ``` block.\n"

    def public(self, example: Example) -> Example | None:
        """Returns the example with those assertions alone that its prompt shows; None where it shows none."""
        shown = example["assertions"][: self.shown]
        return example | {"tests": "\n".join(shown)} if shown else None


@lru_cache(maxsize=4)
def _rows(path: str) -> list[Example]:
    file = Path(path) / "mbpp.jsonl"
    rows = read_jsonl(file, ("text", "code"))
    # Set-up code builds objects of classes that only the solution has.
    return [_example(f"{file}, row {n}", row) for n, row in enumerate(rows, start=1) if not row.get("test_setup_code")]


def _example(where: str, row: dict[str, Any]) -> Example:
    if not isinstance(row.get("task_id"), int):
        raise ValueError(f"{where}: expected a whole number under task_id, found {row.get('task_id')!r}")
    code, tests = text_field(row, "code"), [plain_text(test) for test in row.get("test_list") or ()]
    called = {node.id for test in tests for node in ast.walk(parse(test)) if isinstance(node, ast.Name)}
    names = [
        node.name
        for node in parse(code).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in called
    ]
    if not names:
        raise ValueError(f"{where}: no test calls a function of the reference code")
    return {
        "problem": text_field(row, "text").strip(),
        "code": code,
        "assertions": tests,
        "tests": "\n".join(tests),
        "names": names,
        "task_id": row["task_id"],
    }
