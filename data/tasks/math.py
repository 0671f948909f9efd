"""Competition mathematics with an answer in LaTeX: MATH (2103.03874), DeepScaleR, One-Shot-RLVR (2504.20571)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.chat import after_thinking
from data.json_files import parse_json
from data.sources import Example
from data.tasks.base import Verdict, check_split
from data.verify import gold
from data.verify.extract import last_boxed
from data.verify.math import judge_math, warm_up
from data.verify.pool import inside_worker, judge_alone

# The words of One-Shot-RLVR's prompts.
SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
FILES = (".json", ".jsonl")


@dataclass(frozen=True)
class Math:
    """Problems whose answer stands in `\\boxed{}`, from the JSON or JSON-lines files of a folder.

    Every file is a split, named by its path in the folder without its ending (`train/math`, `dsr_sub`), and so is every
    folder in it (`train`: all its files). Rows: `problem` or `question`, or One-Shot-RLVR's `prompt`; with `answer`,
    `reward_model.ground_truth` or a `solution` with a box. Rows whose answer math-verify cannot read are left out, with
    a warning that counts them. `suffix` follows every problem.
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


def _splits(path: str) -> dict[str, list[Path]]:
    """Returns the files of every split."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} with JSON or JSON-lines files of problems for 'math'")
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in FILES and file.is_file() and _rows(str(file)):
            place = file.relative_to(folder).with_suffix("")
            for name in (place, *place.parents[:-1]):
                found.setdefault(name.as_posix(), []).append(file)
    if not found:
        raise FileNotFoundError(f"no file below {folder} has rows with a problem and an answer")
    return found


@lru_cache(maxsize=16)
def _examples(path: str, split: str) -> list[Example]:
    rows = [row for file in _splits(path)[split] for row in _rows(str(file))]
    bad = gold.unreadable([row["answer"] for row in rows])
    lost = [row["answer"] for row in rows if row["answer"] in bad]
    if lost:
        gold.left_out(f"math, split {split!r} of {path}", lost, len(rows))
    if len(lost) == len(rows):
        raise ValueError(f"no answer in split {split!r} of {path} can be read")
    return [row for row in rows if row["answer"] not in bad]


@lru_cache(maxsize=64)
def _rows(file: str) -> list[Example]:
    """Returns the rows of a file that holds problems, and none for a file that holds something else."""
    found = _load(Path(file))
    if not found or not all(isinstance(row, dict) for row in found) or not _problem(found[0]):
        return []
    return [_example(f"{file}, row {number}", number, row) for number, row in enumerate(found)]


def _load(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    try:
        whole = parse_json(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass
    # Some sets call their JSON lines `.json`.
    try:
        return [parse_json(line) for line in text.rstrip().split("\n")]
    except ValueError as error:
        raise ValueError(f"{file} holds neither JSON nor JSON lines: {error}") from None


def _example(where: str, number: int, row: dict[str, Any]) -> Example:
    problem = _problem(row)
    if not problem:
        raise ValueError(f"{where}: no problem; the row has {', '.join(row) or 'nothing'}")
    solution = row.get("solution")
    boxed = last_boxed(solution) if isinstance(solution, str) else None
    index = row.get("extra_info", {}).get("index", number)
    example = {"problem": problem.removesuffix(SUFFIX).strip(), "answer": _answer(row, boxed), "index": index}
    return example if boxed is None else example | {"solution": solution}


def _problem(row: dict[str, Any]) -> str:
    for name in ("problem", "question"):
        if isinstance(row.get(name), str):
            return str(row[name])
    messages = row.get("prompt")
    return str(messages[-1]["content"]) if isinstance(messages, list) and messages else ""


def _answer(row: dict[str, Any], boxed: str | None) -> str:
    """Returns the reference answer as LaTeX without dollars; empty where the row has none."""
    given = row.get("answer", row.get("reward_model", {}).get("ground_truth", boxed))
    several = given if isinstance(given, list) else [given]
    return ", ".join(_plain(answer) for answer in several if answer is not None)


def _plain(answer: object) -> str:
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    text = str(answer).strip().strip("$").strip()
    inside = last_boxed(text)
    return inside if inside is not None and text.endswith("}") and text.startswith("\\boxed{") else text
