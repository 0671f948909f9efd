"""Long multiplication: the published lines bit for bit, both styles, disjoint splits and verdicts."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data.sources.examples import Example
from data.tasks import build_task
from data.tasks.base import ReasoningTask
from data.tasks.multiplication import Multiplication
from data.tokenizers.characters import CharTokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mult_icot"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the multiplication files are not in {SHARED}")
HAND: Example = {"a": 2365, "b": 4347}
LINE = (
    "5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) + 0 0 0 0 6 4 9 0"
    " #### 5 5 6 0 8 2 0 1"
)


def forward(text: str) -> int:
    """Reads a number written least significant digit first."""
    return int(text.replace(" ", "")[::-1])


def test_prompts_steps_and_answers() -> None:
    task, compact = Multiplication(), Multiplication(style="compact")
    assert task.prompt(HAND) == "5 6 3 2 * 7 4 3 4\n"
    steps = ["5 5 5 6 1", "0 0 6 4 9 0 ( 5 5 1 1 1 1 )", "0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 )", "0 0 0 0 6 4 9 0"]
    assert task.steps(HAND) == steps
    assert task.target(HAND) == "\n".join([*steps, "### 5 5 6 0 8 2 0 1"])
    assert compact.prompt(HAND) == "5632*7434\n"
    assert compact.target(HAND) == "55561\n006490(551111)\n0059070(5560280)\n00006490\n### 55608201"
    assert Multiplication(digits=2).target({"a": 99, "b": 10}) == "0 0 0\n0 9 9 0\n### 0 9 9 0"


@pytest.mark.parametrize("digits", [2, 3, 7, 20])
def test_steps_add_up(digits: int) -> None:
    task = Multiplication(digits=digits)
    for row in task.examples("train")[:50]:
        assert len(str(row["a"])) == len(str(row["b"])) == digits
        steps, answer = task.steps(row), forward(task.answer(row))
        parts = [forward(step.partition("(")[0]) for step in steps]
        sums = [forward(step.partition("(")[2].strip(" )")) for step in steps[1:-1]]
        assert len(steps) == digits and sum(parts) == answer == row["a"] * row["b"]
        totals = [parts[0], *sums, answer]
        assert [b - a for a, b in pairwise(totals)] == parts[1:]


@pytest.mark.parametrize("style", ["spaced", "compact"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_demonstrations_are_right_and_stay_in_the_alphabet(split: str, style: str) -> None:
    task: ReasoningTask = Multiplication(digits=3, style=style)
    assert task.alphabet is not None
    CharTokenizer(task.alphabet)
    for row in task.examples(split)[:100]:
        assert set(task.prompt(row) + task.target(row)) <= set(task.alphabet)
        assert task.verify(row, task.target(row)).score == 1.0
        assert task.verify(row, task.answer({"a": row["a"], "b": row["b"] - 1})).score == 0.0
        assert json.loads(json.dumps(row)) == row


def test_rows_depend_on_seed_split_and_index_alone() -> None:
    rows = Multiplication().examples("test")
    assert [Multiplication().examples("test")[i] for i in (5, 1)] == [rows[5], rows[1]]
    assert Multiplication(seed=1).examples("test")[:5] != rows[:5]
    task = Multiplication(train_size=7, valid_size=5, test_size=3)
    assert [len(task.examples(split)) for split in ("train", "valid", "test")] == [7, 5, 3]


def test_no_product_is_in_two_splits_whatever_the_seed() -> None:
    """4095 unordered pairs of two digits, in either order."""
    pairs = {}
    for split in ("train", "valid", "test"):
        rows = [row for seed in (0, 1) for row in Multiplication(digits=2, seed=seed).examples(split)[:1000]]
        pairs[split] = {(min(row["a"], row["b"]), max(row["a"], row["b"])) for row in rows}
    assert len(set.union(*pairs.values())) == sum(map(len, pairs.values()))
    assert len(pairs["test"]) == pytest.approx(409, abs=60)
    assert len(pairs["valid"]) == pytest.approx(205, abs=45)


@needs_data
@pytest.mark.parametrize("digits", [4, 5, 7, 9, 11])
@pytest.mark.parametrize(("split", "file"), [("real_valid", "valid.txt"), ("real_test", "test_bigbench.txt")])
def test_published_lines_come_out_bit_for_bit(digits: int, split: str, file: str) -> None:
    task = Multiplication(digits=digits, path=str(SHARED))
    lines = (SHARED / f"{digits}_by_{digits}_mult" / file).read_text().splitlines()
    rows = task.examples(split)
    assert len(rows) == len(lines) == 1000
    for row, line in zip(rows, lines, strict=True):
        steps = " + ".join(task.steps(row))
        assert f"{task.prompt(row).strip()}||{steps} #### {task.answer(row)}" == line
        assert task.verify(row, line).score == task.verify(row, task.target(row)).score == 1.0


def test_real_products_are_left_out_of_training(tmp_path: Path) -> None:
    folder = tmp_path / "2_by_2_mult"
    folder.mkdir()
    plain = Multiplication(digits=2)
    taken = plain.examples("train")[:20]
    for name, rows in (("valid.txt", taken[:10]), ("test_bigbench.txt", taken[10:])):
        swapped = [{"a": row["b"], "b": row["a"]} for row in rows]
        lines = [
            f"{plain.prompt(row).strip()}||{' + '.join(plain.steps(row))} #### {plain.answer(row)}" for row in swapped
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
    task = Multiplication(digits=2, path=str(tmp_path))
    left = {(row["a"], row["b"]) for row in task.examples("train")[:5000]}
    assert len(task.examples("real_valid")) == 10
    assert not left & {(row["a"], row["b"]) for row in taken}
    assert not left & {(row["b"], row["a"]) for row in taken}
    assert task.examples("test")[:20] == plain.examples("test")[:20]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("### 5 5 6 0 8 2 0 1", 1.0),
        (f"{LINE}", 1.0),
        ("5 5 6 0 8 2 0 1\n", 1.0),
        ("#5, 5 6 0 8 2 0 1", 1.0),
        ("### 5 5 6 0 8 2 0 1 0", 0.0),
        ("### 55608201", 0.0),
        ("### 1 0 2 8 0 6 5 5", 0.0),
        ("### 5 5 6 0 8 2 0 1 #", 0.0),
        ("### ５ 5 6 0 8 2 0 1", 0.0),
        ("### 2365*4347", 0.0),
        ("### 9**9**9**9", 0.0),
        ("### " + "9" * 10_000_000, 0.0),
        ("9," * 1_000_000, 0.0),
        ("#" * 1_000_000, 0.0),
        ("", 0.0),
        ("\ud800", 0.0),
    ],
)
def test_verdicts(text: str, score: float) -> None:
    start = time.perf_counter()
    verdict = Multiplication().verify(HAND, text)
    assert time.perf_counter() - start < 2
    assert verdict.score == score and verdict.reason
    assert verdict.parsed is None or len(verdict.parsed) <= 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"digits": 1}, r"digits must lie in 2\.\.20, got 1"),
        ({"digits": 21}, "got 21"),
        ({"style": "space"}, "Did you mean 'spaced'"),
        ({"digit": 4}, "Did you mean 'digits'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_task("multiplication", **options)


def test_wrong_places_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        Multiplication().examples("trian")
    with pytest.raises(FileNotFoundError, match="need path="):
        Multiplication().examples("real_test")
    for split in ("real_test", "train"):
        with pytest.raises(FileNotFoundError, match=r"no file .*6_by_6_mult"):
            Multiplication(digits=6, path=str(tmp_path)).examples(split)


@pytest.mark.parametrize("line", ["", "2 * 3", LINE.replace("9", "8"), LINE + " ", "1 2 * 3 4||" + LINE.split("||")[1]])
def test_malformed_lines_name_the_file_and_the_line(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "4_by_4_mult"
    folder.mkdir()
    (folder / "valid.txt").write_text(f"{LINE}\n{line}\n{LINE}\n")
    with pytest.raises(ValueError, match=r"valid\.txt, line 2: expected"):
        Multiplication(path=str(tmp_path)).examples("real_valid")
