"""GSM8K's equations as chains of thought: steps, held-out questions, and verdicts."""

import json
import time
from pathlib import Path

import pytest

from data.tasks import build_task
from data.tasks.base import ReasoningTask
from data.tasks.gsm8k_equations import GSM8KEquations

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
GSM8K, ICOT = SHARED / "gsm8k", SHARED / "gsm8k_icot"
needs_data = pytest.mark.skipif(
    not (GSM8K.is_dir() and ICOT.is_dir()), reason=f"the GSM8K files are not in {GSM8K} and {ICOT}"
)
ROWS = [
    {"question": "Two  and two? ", "answer": "2+2=<<2+2=4>>4, then\n4*250=<<4*250=1000>>1,000\n#### 1,000"},
    {"question": "Below?", "answer": "#### -3"},
    {"question": "Half?", "answer": "<<1/2=.5>>.5\n#### 0.5"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "valid.txt").write_text("Two and two?||<<2+2=4>> <<4*250=1000>> #### 1000\n")
    return tmp_path


def test_steps_answers_and_demonstrations(folder: Path) -> None:
    task: ReasoningTask = build_task("gsm8k_equations", path=str(folder))  # type: ignore[assignment]
    first, second, third = task.examples("train")
    assert task.prompt(first) == "Two  and two?\n"
    assert task.target(first) == "<<2+2=4>>\n<<4*250=1000>>\n### 1000"
    assert (task.steps(second), task.target(second)) == ([], "### -3")
    assert task.target(third) == "<<1/2=.5>>\n### 0.5"
    assert [task.verify(row, task.target(row)).score for row in task.examples("test")] == [1.0, 1.0, 1.0]


def test_held_out_questions_are_no_training_rows(folder: Path) -> None:
    task = build_task("gsm8k_equations", path=str(folder), icot_path=str(folder))
    assert list(task.examples("train")) == ROWS[1:]
    assert list(task.examples("valid")) == ROWS[:1]
    assert list(task.examples("test")) == ROWS
    cut = build_task("gsm8k_equations", path=str(folder), valid_size=1)
    assert (list(cut.examples("train")), list(cut.examples("valid"))) == (ROWS[:2], ROWS[2:])


def test_wrong_places_and_options_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(FileNotFoundError, match="gsm8k_equations needs path"):
        build_task("gsm8k_equations")
    with pytest.raises(ValueError, match="leave valid_size 0, got 5"):
        build_task("gsm8k_equations", path="x", icot_path="y", valid_size=5)
    with pytest.raises(ValueError, match="Did you mean 'icot_path'"):
        build_task("gsm8k_equations", path="x", icotpath="y")
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        GSM8KEquations(path=str(folder)).examples("trian")
    with pytest.raises(ValueError, match="valid_size"):
        GSM8KEquations(path=str(folder)).examples("valid")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"no file .*valid\.txt"):
        GSM8KEquations(path=str(folder), icot_path=str(empty)).examples("train")
    with pytest.raises(FileNotFoundError, match=r"no file .*test\.jsonl"):
        GSM8KEquations(path=str(empty)).examples("test")


@pytest.mark.parametrize(
    ("text", "words"),
    [("Two and two?||#### 4\nodd\n", "line 2: expected"), ("Three?||#### 3\n", "1 questions of .* such as 'Three")],
)
def test_other_validation_files_are_refused(tmp_path: Path, folder: Path, text: str, words: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "valid.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        GSM8KEquations(path=str(folder), icot_path=str(other)).examples("train")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<<2+2=4>>\n### 1000", 1.0),
        ("#### 1,000\n", 1.0),
        ("1000", 1.0),
        ("### 1000.0", 0.0),
        ("### $1000", 0.0),
        ("### 1000 ###", 0.0),
        ("### 10 00", 0.0),
        ("### 1e3", 0.0),
        ("### 10**3", 0.0),
        ("### ١٠٠٠", 0.0),
        ("### " + "9" * 10_000_000, 0.0),
        ("<<" * 1_000_000, 0.0),
        ("#" * 1_000_000, 0.0),
        ("### __import__('os').abort()", 0.0),
        ("", 0.0),
        ("\ud800", 0.0),
    ],
)
def test_verdicts(text: str, score: float) -> None:
    start = time.perf_counter()
    verdict = GSM8KEquations(path="x").verify(ROWS[0], text)
    assert time.perf_counter() - start < 2
    assert verdict.score == score and verdict.reason
    assert verdict.parsed is None or len(verdict.parsed) <= 200


@needs_data
def test_the_real_files_and_their_published_equations() -> None:
    """The 500 and the 1319 lines of gsm8k_icot are what is extracted here; none of the 500 is trained on."""
    task = GSM8KEquations(path=str(GSM8K), icot_path=str(ICOT))
    train, valid, test = (task.examples(split) for split in task.splits)
    assert (len(train), len(valid), len(test)) == (6973, 500, 1319)
    questions = [{" ".join(row["question"].split()) for row in rows} for rows in (train, valid, test)]
    assert not questions[0] & questions[1] and not questions[0] & questions[2]
    for rows, name in ((valid, "valid"), (test, "test")):
        lines = (ICOT / f"{name}.txt").read_text().splitlines()
        published = {" ".join(line.partition("||")[0].split()): line.partition("||")[2].strip() for line in lines}
        for row in rows:
            chain, _, answer = published[" ".join(row["question"].split())].rpartition("#### ")
            assert task.steps(row) == chain.split()
            assert task.answer(row) == answer.replace(",", "")
    assert sum(len(task.steps(row)) == 0 for row in train) == 95 - 6
    assert all(task.verify(row, task.target(row)).score == 1.0 for row in [*train, *valid, *test])
