"""GSM8K: rows, demonstrations and verdicts, on tiny files and on the real ones where they are."""

import json
from pathlib import Path

import pytest

from data.sources.examples import read_jsonl
from data.tasks import build_task
from data.tasks.gsm8k import GSM8K

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the GSM8K files are not in {SHARED}")
ROWS = [
    {"question": "Two and two? ", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    {"question": "A thousand?", "answer": "It is 1,000.\n#### 1,000"},
    {"question": "Below?", "answer": "#### -3"},
]
EXAMPLE = ROWS[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", ROWS)
    return tmp_path


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_prompts_and_demonstrations(folder: Path) -> None:
    task = build_task("gsm8k", path=str(folder))
    row = task.examples("train")[0]
    assert task.prompt(row) == "Two and two?\n"
    assert task.target(row) == "2+2=4\n#### 4"
    assert GSM8K(path="x", keep_calculator=True).target(row) == "2+2=<<2+2=4>>4\n#### 4"
    assert [task.verify(row, task.target(row)).score for row in task.examples("test")] == [1.0, 1.0, 1.0]


def test_valid_is_the_end_of_train(folder: Path) -> None:
    task = build_task("gsm8k", path=str(folder), valid_size=1)
    assert list(task.examples("train")) == ROWS[:2]
    assert list(task.examples("valid")) == ROWS[2:]
    for size in (0, 3):
        with pytest.raises(ValueError, match="valid_size"):
            build_task("gsm8k", path=str(folder), valid_size=size).examples("valid")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("#### 1000", 1.0),
        ("#### 1,000", 1.0),
        ("#### $1,000.00.", 1.0),
        ("#### 1,000 apples", 1.0),
        ("#### 1000\nand more 7", 1.0),
        ("#### 5 #### 1000", 1.0),
        ("<think>#### 5</think>#### 1000", 1.0),
        ("#### 1000 #### 5", 0.0),
        ("#### 1000 5", 0.0),
        ("#### ", 0.0),
        ("#### 1e3", 0.0),
        ("<think>#### 1000</think>", 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_verdicts_after_the_marker(text: str, score: float, strict: bool) -> None:
    assert GSM8K(path="x", strict=strict).verify(EXAMPLE, text).score == score


@pytest.mark.parametrize(
    "text", ["\\boxed{1,000}", "\\boxed{5} no \\boxed{1000\\text{ km}}", "2 + 998 = 1000.", "1000"]
)
def test_fallbacks_unless_strict(text: str) -> None:
    assert GSM8K(path="x").verify(EXAMPLE, text).score == 1.0
    verdict = GSM8K(path="x", strict=True).verify(EXAMPLE, text)
    assert (verdict.score, verdict.reason) == (0.0, "no '####' in the answer")


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{1{,}000}",
        "\\boxed{1,\\!000}",
        "\\fbox{1\u202f000}",
        "\\boxed 1000",
        "\\boxed{1000}, \\boxed{1,000}",
        "It is $1{,}000$.",
        "#### 1\\,000",
    ],
)
def test_grouped_digits_and_boxes(text: str) -> None:
    assert GSM8K(path="x").verify(EXAMPLE, text).score == 1.0


@pytest.mark.parametrize("gold", ["999", "1000"])
@pytest.mark.parametrize(
    "text", ["\\boxed{999, 1000}", "\\boxed{999}\\boxed{1000}", "\\boxed{999} or \\boxed{1000}", "#### 999 1000"]
)
def test_lists_of_answers_are_refused(gold: str, text: str) -> None:
    assert GSM8K(path="x").verify({"answer": f"#### {gold}"}, text).score == 0.0


@pytest.mark.parametrize("text", ["It is $12{,}500$.", "12\u00a0500", "12'500", "3/500", "1000-500", "item A500"])
def test_the_tail_of_a_number_earns_nothing(text: str) -> None:
    assert GSM8K(path="x").verify({"answer": "#### 500"}, text).score == 0.0


def test_missing_places_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="gsm8k needs path"):
        build_task("gsm8k")
    with pytest.raises(FileNotFoundError, match=r"no file .*train\.jsonl"):
        build_task("gsm8k", path=str(tmp_path)).examples("train")
    with pytest.raises(ValueError, match="Did you mean 'tfds'"):
        build_task("gsm8k", path="x", source="tdfs")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"question": "q"}', "line 2: no text under answer"),
        ('{"question": "q", "answer": 4}', "line 2: no text under answer"),
        ('{"question": "q", "answer": "four"}', "line 2: the answer does not end in"),
    ],
)
def test_malformed_rows_name_the_file_and_the_line(tmp_path, line: str, message: str) -> None:
    good = json.dumps(ROWS[0])
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=rf"train\.jsonl, {message}"):
        build_task("gsm8k", path=str(tmp_path)).examples("train")


def test_an_empty_file_is_refused_and_trailing_newlines_are_not(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="is empty"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"x": "a\\u2028b"}\n\n')
    assert read_jsonl(tmp_path / "b.jsonl") == [{"x": "a\u2028b"}]


@needs_data
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_every_reference_answer_is_verified(split: str, size: int) -> None:
    task = build_task("gsm8k", path=str(SHARED), strict=True)
    rows = task.examples(split)
    assert len(rows) == size
    assert all(task.verify(row, task.target(row)).score == 1.0 for row in rows)
    assert not any("<<" in task.target(row) for row in rows)
