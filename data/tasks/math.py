"""Competition mathematics with an answer in LaTeX: MATH (2103.03874), DeepScaleR, One-Shot-RLVR (2504.20571)."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.chat import after_thinking
from data.sources.examples import Example
from data.tasks.base import Verdict, check_split, known
from data.verify import gold
from data.verify.extract import boxed_values
from data.verify.math import judge_math, warm_up
from data.verify.pool import inside_worker, judge_alone
from store.files import parse_json, read_text

# The words of One-Shot-RLVR's prompts.
SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
FILES = (".json", ".jsonl")
PROBLEMS = ("problem", "question", "prompt")


@dataclass(frozen=True)
class Math:
    """Problems whose answer stands in `\\boxed{}`, from the JSON or JSON-lines files of a folder.

    Every file is a split, named by its path in the folder without its ending (`train/math`, `dsr_sub`), and so is every
    folder in it (`train`: all its files). Rows: `problem` or `question`, or One-Shot-RLVR's `prompt`; with `answer`,
    `reward_model.ground_truth` or a `solution` with a box, the first of them that is not null, NaN or empty. Rows that
    have none, and those whose answer math-verify cannot read, are left out, with a warning that counts them and says
    why. `suffix` follows every problem.
    """

    path: str = ""
    suffix: str = SUFFIX

    alphabet = None
    isolated = True

    def __post_init__(self) -> None:
        if not self.path:
            raise FileNotFoundError("math needs path=<folder>: one with JSON or JSON-lines files of problem and answer")

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the files and folders that hold problems."""
        return tuple(sorted(_splits(self.path)))

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"problem", "answer", "index", "solution"}`, the last where the file has one.

        ValueError for an unknown split or bad rows, FileNotFoundError for a missing folder.
        """
        check_split("math", split, self.splits)
        return _examples(self.path, split)

    def prompt(self, example: Example) -> str:
        """Returns the problem, the suffix and a newline."""
        return f"{example['problem']} {self.suffix}".rstrip() + "\n"

    def target(self, example: Example) -> str:
        """Returns the solution where the data have one that ends in a box, else the boxed answer alone."""
        return str(example.get("solution") or f"\\boxed{{{example['answer']}}}")

    def warm_up(self) -> None:
        """Imports math-verify, in a worker that is about to judge."""
        warm_up()

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the last boxed answer after the last `</think>` equals the reference.

        Outside a worker the answer goes to one; give many answers to `data.verify.pool.judge_of(task)` instead.
        """
        if not inside_worker():
            return judge_alone(self, example, text)
        return judge_math(str(example["answer"]), after_thinking(text))

    def comparison(self, reference: str, answer: str) -> tuple[Example, str]:
        """Returns a problem with that reference answer, and a text with that boxed answer."""
        return {"answer": reference}, f"\\boxed{{{answer}}}"


def _splits(path: str) -> dict[str, list[Path]]:
    """Returns the files of every split."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with JSON or JSON-lines files of problems for 'math'")
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in FILES and file.is_file() and _rows(str(file)):
            place = file.relative_to(folder).with_suffix("")
            for name in (place, *place.parents[:-1]):
                splits.setdefault(name.as_posix(), []).append(file)
    if not splits:
        raise FileNotFoundError(f"no file below {folder} has rows with a problem and an answer")
    return splits


@lru_cache(maxsize=16)
def _examples(path: str, split: str) -> list[Example]:
    rows = [row for file in _splits(path)[split] for row in _rows(str(file))]
    bad = gold.unreadable([row["answer"] for row in rows])
    reasons = [_left_out(row, bad) for row in rows]
    lost = [(reason, row["answer"]) for reason, row in zip(reasons, rows, strict=True) if reason]
    if len(lost) == len(rows):
        raise ValueError(f"no answer in split {split!r} of {path} can be read: {gold.counted(lost)}")
    if lost:
        gold.left_out(f"math, split {split!r} of {path}", lost, len(rows))
    return [row for reason, row in zip(reasons, rows, strict=True) if not reason]


def _left_out(row: Example, bad: Container[str]) -> str:
    """Why a row cannot be used, or nothing."""
    if not row["problem"]:
        return "no problem"
    if not row["answer"]:
        return "no answer"
    return "an answer that cannot be read" if row["answer"] in bad else ""


@lru_cache(maxsize=64)
def _rows(file: str) -> list[Example]:
    """Returns the rows of a file that holds problems, and none for a file that holds something else.

    What a row has as null, NaN or an empty text it does not have; its `problem` or `answer` is then empty.
    """
    rows = _load(Path(file))
    if not all(row is None or isinstance(row, dict) for row in rows) or not any(map(_problem, filter(None, rows))):
        return []
    return [_example(f"{file}, row {number}", number, row) for number, row in enumerate(rows)]


def _load(file: Path) -> list[Any]:
    text = read_text(file)
    try:
        whole = parse_json(text, str(file))
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass
    # Some sets call their JSON lines `.json`.
    lines = text.rstrip().split("\n")
    try:
        return [parse_json(line, f"line {number}") for number, line in enumerate(lines, start=1)]
    except ValueError as error:
        raise ValueError(f"{file} holds neither JSON nor JSON lines that can be read: {error}") from None


def _example(where: str, number: int, row: dict[str, Any] | None) -> Example:
    if row is not None and not set(PROBLEMS) & set(row):
        raise ValueError(f"{where}: no problem; the row has {', '.join(row) or 'nothing'}")
    row = row or {}
    solution = row.get("solution")
    boxed = ", ".join(boxed_values(solution)) if isinstance(solution, str) else ""
    index = _mapping(row.get("extra_info")).get("index")
    example = {
        "problem": _problem(row).removesuffix(SUFFIX).strip(),
        "answer": _answer(row, boxed),
        "index": _plain_index(index) if known(index) else number,
    }
    return example | {"solution": solution} if boxed else example


def _problem(row: dict[str, Any]) -> str:
    for name in ("problem", "question"):
        if isinstance(row.get(name), str) and known(row[name]):
            return str(row[name])
    messages = row.get("prompt")
    last = _mapping(messages[-1]).get("content") if isinstance(messages, list) and messages else None
    return last if isinstance(last, str) and known(last) else ""


def _answer(row: dict[str, Any], boxed: str) -> str:
    """Returns the reference answer as LaTeX without dollars, from the first place that has one; else an empty text."""
    places = (row.get("answer"), _mapping(row.get("reward_model")).get("ground_truth"), boxed)
    return next(filter(None, (", ".join(_texts(place)) for place in places)), "")


def _texts(answer: object) -> list[str]:
    """The answers in a value or in a list of them, without what is missing."""
    if isinstance(answer, list):
        return [text for part in answer for text in _texts(part)]
    return list(filter(None, [_plain(answer)])) if known(answer) and not isinstance(answer, dict) else []


def _plain(answer: object) -> str:
    if isinstance(answer, float):
        return str(int(answer)) if answer.is_integer() else format(Decimal(repr(answer)), "f")
    text = str(answer).strip().strip("$").strip()
    return ", ".join(boxed_values(text)) or text


def _plain_index(index: object) -> object:
    # Parquet has made a column with gaps one of floats.
    return int(index) if isinstance(index, float) and index.is_integer() else index


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
