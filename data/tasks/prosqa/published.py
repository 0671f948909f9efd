"""The 800 published rows of ProsQA."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.sources.examples import Example
from data.tasks.base import ReasoningTask
from data.tasks.prosqa.words import SYMBOL
from store.files import read_json

FACT = re.compile(r"(?:Every )?(\w+) is a (\w+)\.")
QUESTION = re.compile(r" Is (\w+) a (\w+) or (\w+)\?")


@lru_cache(maxsize=4)
def read_published(path: str, split: str, task: ReasoningTask) -> list[Example]:
    """Returns the rows of prosqa_<split>.json in the folder `path`, each compared with what `task` writes of it.

    FileNotFoundError for a missing file and ValueError for a malformed row.
    """
    if not path:
        raise FileNotFoundError(
            "the real rows of prosqa need path=<folder>: the one with prosqa_valid.json and prosqa_test.json of "
            "github.com/facebookresearch/coconut"
        )
    file = Path(path) / f"prosqa_{split}.json"
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; put it there or give another path")
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: expected a list of rows, found {type(rows).__name__}")
    return [_checked_row(f"{file}, row {number}", row, task) for number, row in enumerate(rows, start=1)]


def _checked_row(where: str, row: Mapping[str, Any], task: ReasoningTask) -> Example:
    """A published row as an example that renders to the row's own words; ValueError where it would not."""
    try:
        example = _parsed(row)
        texts = task.prompt(example), task.steps(example), task.answer(example)
        same = (f"{row['question']}\n", row["steps"], row["answer"]) == texts
        same = same and example["path"][-1] == example["target"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a row of ProsQA ({type(error).__name__}: {error})") from None
    if not same:
        raise ValueError(f"{where}: its question, steps and answer are not those of its graph")
    return example


def _parsed(row: Mapping[str, Any]) -> Example:
    symbols = list(row["idx_to_symbol"])
    number = {word: node for node, word in enumerate(symbols)}
    question = QUESTION.search(row["question"])
    if question is None or not set(symbols) <= set(SYMBOL):
        raise ValueError("no question 'Is name a kind or kind?', or a word that is not ProsQA's")
    facts = [FACT.fullmatch(step) for step in row["steps"]]
    path = [row["root"], *[number[fact[2]] for fact in facts if fact]]
    pairs = [[number[a], number[b]] for a, b in FACT.findall(row["question"])]
    if sorted(pairs) != sorted(map(list, row["edges"])):
        raise ValueError("its facts are not its edges")
    options = [number[question[2]], number[question[3]]]
    return {"symbols": symbols, "edges": pairs, "path": path, "options": options} | {
        name: row[name] for name in ("root", "target", "neg_target")
    }
