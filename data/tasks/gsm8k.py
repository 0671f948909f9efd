"""GSM8K (arXiv 2110.14168): grade-school word problems whose answer is one number after `####`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data.chat import after_thinking
from data.names import unknown_name
from data.sources.examples import Example, read_jsonl, read_tfds
from data.tasks.base import Verdict, check_split
from data.verify.extract import after_marker, boxed_values
from data.verify.numbers import Number, last_number, read_number, same_number

FIELDS = ("question", "answer")
# More than this much text after the answer's place is not searched for it.
MAX_TAIL = 20_000


@dataclass(frozen=True)
class GSM8K:
    """Questions with worked answers, from the original files or a prepared TFDS data set.

    `path`: the folder with `train.jsonl` and `test.jsonl` (`source="jsonl"`) or TFDS's data directory
    (`source="tfds"`). `valid_size`: how many of the last training rows become the split `valid`.
    `keep_calculator`: leave the `<<48/2=24>>` notes in the demonstrations. `strict`: only a number after
    `####` counts as an answer.
    """

    path: str = ""
    source: str = "jsonl"
    valid_size: int = 0
    keep_calculator: bool = False
    strict: bool = False

    alphabet = None
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if self.source not in ("jsonl", "tfds"):
            raise unknown_name("source of 'gsm8k'", self.source, ("jsonl", "tfds"))
        if not self.path:
            raise FileNotFoundError(
                "gsm8k needs path=<folder>: the one with train.jsonl and test.jsonl of "
                "github.com/openai/grade-school-math, or with source='tfds' the directory that "
                "data.tfds.prepare_gsm8k prepared"
            )

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"question", "answer"}`; ValueError for bad rows, FileNotFoundError for missing files."""
        check_split("gsm8k", split, self.splits)
        if split == "test":
            return self._rows("test")
        rows = self._rows("train")
        if split == "train" and self.valid_size == 0:
            return rows
        cut = len(rows) - self.valid_size
        if not 0 < cut < len(rows):
            raise ValueError(f"valid_size must lie in 1..{len(rows) - 1} for a split 'valid', got {self.valid_size}")
        return rows[:cut] if split == "train" else rows[cut:]

    def prompt(self, example: Example) -> str:
        """Returns the question and a newline."""
        return f"{example['question'].strip()}\n"

    def target(self, example: Example) -> str:
        """Returns the worked answer, its last line `#### number`."""
        answer = example["answer"].strip()
        return answer if self.keep_calculator else re.sub(r"<<[^<>\n]*>>", "", answer)

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the answer equals the reference as a number.

        After the last `</think>` it is read behind the last `####`; unless `strict`, otherwise from the last
        `\\boxed{}`, otherwise it is the last number.
        """
        answer = self._answer(after_thinking(text)[-MAX_TAIL:])
        gold = read_number(after_marker(example["answer"]) or "")
        if answer.value is None:
            return Verdict(0.0, answer.text or None, answer.reason)
        right = same_number(answer.value, gold.value)
        return Verdict(float(right), answer.text, "correct" if right else "wrong number")

    def comparison(self, reference: str, answer: str) -> tuple[Example, str]:
        """Returns a question with that number as reference, and a text with that number."""
        return {"answer": f"#### {reference}"}, f"#### {answer}"

    def _answer(self, text: str) -> Number:
        marked = after_marker(text)
        if marked is not None:
            return read_number(marked)
        if self.strict:
            return Number(None, "", "no '####' in the answer")
        numbers = [read_number(value) for value in boxed_values(text)]
        if len({number.value for number in numbers}) > 1:
            return Number(None, "", "several boxed answers side by side")
        return numbers[-1] if numbers else last_number(text)

    def _rows(self, split: str) -> Sequence[Example]:
        if self.source == "tfds":
            return read_tfds("gsm8k", split, self.path)
        return _read(str(Path(self.path) / f"{split}.jsonl"))


@lru_cache(maxsize=4)
def _read(file: str) -> list[Example]:
    rows = read_jsonl(file, FIELDS)
    for number, row in enumerate(rows, start=1):
        if read_number(after_marker(row["answer"]) or "").value is None:
            raise ValueError(
                f"{file}, line {number}: the answer does not end in '#### number': {row['answer'][-60:]!r}"
            )
    return rows
