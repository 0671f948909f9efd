"""What every task is made of: verdicts, the interface, splits by hash; and chains of thought in steps."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from data.names import unknown_name
from data.sources.examples import Example, read_jsonl
from data.verify.verdict import Verdict

__all__ = [
    "MARK",
    "ReasoningTask",
    "Task",
    "Verdict",
    "chain_of_thought",
    "check_split",
    "example_key",
    "examples_of",
    "hashed_split",
    "judge_marked",
    "known",
    "stable_hash",
]

# What stands between a chain of thought and its answer.
MARK = "### "
# The field of a row that holds a text which a model wrote, to be learnt from in the place of the task's demonstration.
WRITTEN = "completion"
# What stands between two characters that are one position of a model with `pairs`.
JOINER = "~"
# All commas but those that join digits without grouping thousands: `7,2` is not 72.
_COMMAS = re.compile(r"(?<![0-9]),|,(?![0-9])|,(?=[0-9]{3}(?![0-9]))")
MOST_MARKED = 10_000
# So much of a wrong answer is kept in its verdict.
MOST_PARSED = 200


class Task(Protocol):
    """Examples with prompts, demonstrations and a verifier; `verify` never raises and never hangs.

    A task may also have `parts(example, text)`, {name: whether this holds of a part of the answer}: evaluation reports
    the share of each, and no score depends on it. It too is given hostile text.

    A task whose difficulty is a number of steps has `depth(example)`, from 1 up: the iterations that a recurrent model
    is given for it where a run asks for them (data/depths.py).

    Votes count answers together whose `Verdict.parsed` are equal texts. Where answers are equal in other ways, such as
    1/2 and 0.5, a task has `comparison(reference, answer)`: of two parsed texts it returns an example whose reference
    is the first and a text that gives the second. Whether they are one answer is then what its judge says to that, in
    workers if the task is judged in them.
    """

    @property
    def alphabet(self) -> str | None:
        """Every character that prompts and demonstrations can hold, or None where the text is free."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that `examples` takes."""

    def examples(self, split: str) -> Sequence[Example]:
        """Returns the examples of a split, each JSON-able."""

    def prompt(self, example: Example) -> str:
        """Returns the question as text."""

    def target(self, example: Example) -> str:
        """Returns the demonstration that follows the prompt."""

    def verify(self, example: Example, text: str) -> Verdict:
        """Returns the verdict on a completion, which is hostile text."""


class ReasoningTask(Task, Protocol):
    """A task whose demonstration is a chain in steps: `target` is `chain_of_thought(steps, answer)`.

    Methods that shorten the chain step by step, such as continuous thoughts (2412.06769), take it apart here. `verify`
    is `judge_marked`.
    """

    def steps(self, example: Example) -> list[str]:
        """Returns the reasoning in order, a line of text for each step, without its newline; may be empty."""

    def answer(self, example: Example) -> str:
        """Returns the final answer, without `#`, commas or spaces at its ends."""


def separator_of(task: object) -> str:
    """Returns what ends each step of a task: its `separator`, or, where it names none, a line's end."""
    return str(getattr(task, "separator", "\n"))


def chain_of_thought(steps: Sequence[str], answer: str, separator: str = "\n") -> str:
    """Returns each step on a line of its own, then `### ` and the answer: the text format of 2412.06769."""
    return "".join([step + separator for step in steps]) + MARK + answer


def judge_marked(answer: str, text: str) -> Verdict:
    """Scores 1 when the text after the last `#` (all of it where there is none) is exactly the answer.

    Commas, and spaces at the ends, do not count (the rule of 2412.06769's code), but for commas between digits that do
    not group thousands. At most MOST_MARKED characters are looked at; linear time.
    """
    marked = text.rpartition("#")[2]
    if len(marked) > MOST_MARKED:
        return Verdict(0.0, None, f"more than {MOST_MARKED} characters after the last '#'")
    read = _COMMAS.sub("", marked).strip()
    if not read:
        return Verdict(0.0, None, "no answer after the last '#'")
    right = read == answer
    return Verdict(float(right), read[:MOST_PARSED], "correct" if right else "another answer")


def check_split(task: str, split: str, splits: Sequence[str]) -> None:
    """Raises ValueError for a split the task does not have."""
    if split not in splits:
        raise unknown_name(f"split of {task!r}", split, splits)


def examples_of(task: Task, split: str) -> Sequence[Example]:
    """Returns the examples of a task's split, or those that a JSON-lines file holds in its place: chosen ones.

    `split`: a name of the task's, or a path that ends in `.jsonl`. ValueError, naming file and line, for rows that are
    no examples of this task; FileNotFoundError for a missing file.
    """
    if not split.endswith(".jsonl"):
        return task.examples(split)
    rows = read_jsonl(split)
    for line, row in enumerate(rows, start=1):
        # An example may hold an empty text of its own.
        missing = [name for name, value in row.items() if value != "" and not known(value)]
        if missing:
            raise ValueError(f"{split}, line {line}: null or NaN under {', '.join(missing)}; take the line out")
        try:
            task.prompt(row)
        # Whatever a task makes of a row that is not its own.
        except Exception as error:
            raise ValueError(
                f"{split}, line {line} is no example of this task ({type(error).__name__}: {error}); it holds"
                f" {', '.join(row) or 'nothing'}: give examples as the task makes them, as rl.select does"
            ) from error
    return rows


def demonstration(task: Task, example: Example) -> str:
    """Returns the text to learn from: the one that the row brings, or the task's own."""
    return str(example[WRITTEN]) if WRITTEN in example else task.target(example)


def known(value: object) -> bool:
    """Returns whether a value of a row is there: not null, NaN, an infinity, or a text that is empty or `nan`."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is not None and not (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def stable_hash(*parts: object) -> int:
    """Returns 64 bits that depend on the parts alone: the same in every process, version and machine."""
    text = "/".join([str(part) for part in parts])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def example_key(example: Mapping[str, object]) -> str:
    """Returns the name of an example by its content alone: 16 hexadecimal digits."""
    return f"{stable_hash(json.dumps(example, sort_keys=True, ensure_ascii=True, default=str)):016x}"


def hashed_split(key: str, shares: Mapping[str, int]) -> str:
    """Returns the split a key belongs to; `shares`: percentages by split, the rest is `train`."""
    bucket = stable_hash("split", key) % 100
    for split, share in shares.items():
        if bucket < share:
            return split
        bucket -= share
    return "train"
