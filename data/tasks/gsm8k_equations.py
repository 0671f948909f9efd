"""GSM8K with its calculator's equations as the whole chain of thought (2405.14838, 2412.06769)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data.sources.examples import Example
from data.tasks.base import Verdict, chain_of_thought, check_split, judge_marked
from data.tasks.gsm8k import GSM8K
from data.verify.extract import after_marker
from store.files import read_text

EQUATION = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class GSM8KEquations:
    """Questions of GSM8K, steps `<<48/2=24>>`, `<<48+24=72>>`, answer `72`; one answer in eighty has no equation.

    `path`: the folder with train.jsonl and test.jsonl of openai/grade-school-math. `icot_path`: the folder gsm8k_icot
    of da03/Internalize_CoT_Step_by_Step; its valid.txt then names the split `valid`, 500 questions that were taken from
    GSM8K's training rows, and `train` goes without them. Else the last `valid_size` training rows are `valid`.
    """

    path: str = ""
    icot_path: str = ""
    valid_size: int = 0

    alphabet = None
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if self.icot_path and self.valid_size:
            raise ValueError(f"icot_path already names the split 'valid'; leave valid_size 0, got {self.valid_size}")
        if not self.path:
            raise FileNotFoundError(
                "gsm8k_equations needs path=<folder>: the one with train.jsonl and test.jsonl of "
                "github.com/openai/grade-school-math"
            )

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"question", "answer"}` as in GSM8K; ValueError for bad rows, FileNotFoundError for no files."""
        check_split("gsm8k_equations", split, self.splits)
        if split == "test" or not self.icot_path:
            return GSM8K(path=self.path, valid_size=self.valid_size).examples(split)
        rows, held_out = GSM8K(path=self.path).examples("train"), _held_out(self.icot_path)
        missing = held_out - {_plain(row["question"]) for row in rows}
        if missing:
            raise ValueError(
                f"{len(missing)} questions of {self.icot_path}/valid.txt are not in {self.path}/train.jsonl, such as "
                f"{min(missing)[:80]!r}; give the folders of one and the same data set"
            )
        return [row for row in rows if (_plain(row["question"]) in held_out) == (split == "valid")]

    def prompt(self, example: Example) -> str:
        """Returns the question and a newline."""
        return f"{example['question'].strip()}\n"

    def target(self, example: Example) -> str:
        """Returns the equations and the marked answer."""
        return chain_of_thought(self.steps(example), self.answer(example))

    def steps(self, example: Example) -> list[str]:
        """Returns the equations of the worked answer, in order."""
        return EQUATION.findall(example["answer"])

    def answer(self, example: Example) -> str:
        """Returns the final number without commas."""
        return (after_marker(example["answer"]) or "").replace(",", "")

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text after the last `#` is exactly the answer, commas aside."""
        return judge_marked(self.answer(example), text)


@lru_cache(maxsize=4)
def _held_out(folder: str) -> frozenset[str]:
    """The questions of valid.txt, whose lines are `question||equations #### answer`."""
    file = Path(folder) / "valid.txt"
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; put it there or give another icot_path")
    lines = read_text(file).rstrip().split("\n")
    bad = [number for number, line in enumerate(lines, start=1) if "||" not in line]
    if bad:
        raise ValueError(f"{file}, line {bad[0]}: expected 'question||equations #### answer'")
    return frozenset(_plain(line.partition("||")[0]) for line in lines)


def _plain(question: str) -> str:
    """A question with its white space made one."""
    return " ".join(question.split())
