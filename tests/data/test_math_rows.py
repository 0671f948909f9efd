"""Rows of mathematics with gaps: null, NaN and empty texts are absent, and what is left out is counted."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from data.sources.examples import Example
from data.tasks import build_task
from data.tasks.base import examples_of, known
from data.tasks.math import SUFFIX

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(folder: Path, *rows: Any) -> list[Example]:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return list(build_task("math", path=str(folder)).examples("a"))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": None, "solution": "It is $\\boxed{2}$."}, "2"),
        ({"answer": NAN, "solution": "\\fbox{2} . "}, "2"),
        ({"answer": " ", "reward_model": {"ground_truth": "2"}}, "2"),
        ({"answer": None, "reward_model": {"ground_truth": NAN}, "solution": "$x=\\boxed{2}$ or $\\boxed{3}$"}, "2, 3"),
        ({"answer": "2", "extra_info": None, "reward_model": None}, "2"),
        ({"answer": "2", "extra_info": {"index": NAN}, "solution": None}, "2"),
        ({"answer": [None, "2", NAN]}, "2"),
        ({"answer": [[None, "2"], ["3"]]}, "2, 3"),
        ({"answer": [None], "solution": "\\boxed {2}"}, "2"),
        ({"answer": 2.0}, "2"),
        ({"answer": 1e-7}, "0.0000001"),
        ({"answer": 1e22}, "1" + "0" * 22),
        ({"answer": "n=\\boxed {2}"}, "2"),
    ],
)
def test_what_is_absent_is_looked_for_elsewhere(tmp_path: Path, row: dict[str, Any], answer: str) -> None:
    (example,) = read(tmp_path, {"problem": "?", **row})
    assert (example["answer"], example["index"], example["problem"]) == (answer, 0, "?")


def test_problems_with_gaps(tmp_path: Path) -> None:
    asked = {"prompt": [{"content": f"Two? {SUFFIX}"}], "answer": "2", "extra_info": {"index": 7.0}}
    found = read(tmp_path, {"problem": None, "question": "One?", "answer": "1"}, {"problem": None, **asked})
    assert [(row["problem"], row["index"]) for row in found] == [("One?", 0), ("Two?", 7)]


def test_rows_without_answer_or_problem_are_left_out_and_counted(tmp_path: Path) -> None:
    gaps = [{"problem": "?", "answer": gap} for gap in (None, NAN, INFINITY, "", "nan", {"a": 1}, [])]
    gaps += [{"problem": gap, "answer": "1"} for gap in (None, NAN, "")]
    gaps += [{"prompt": messages, "answer": "1"} for messages in (None, [None], [{"content": None}])]
    with pytest.warns(UserWarning, match=r"14 of 15 rows are left out \(7 have no answer, 7 have no problem\)"):
        (tmp_path / "a.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*gaps, None, {"problem": "Kept?", "answer": "1"}])
        )
        kept = build_task("math", path=str(tmp_path)).examples("a")
    assert [row["problem"] for row in kept] == ["Kept?"]
    with pytest.raises(ValueError, match=r"no answer in split 'a'.* can be read: 1 has no answer"):
        other = tmp_path / "other"
        other.mkdir()
        read(other, {"problem": "?", "answer": None})


def test_integers_that_python_does_not_convert_stay_digits(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"problem": "?", "answer": ' + "7" * 5000 + "}]")
    assert build_task("math", path=str(tmp_path)).examples("a")[0]["answer"] == "7" * 5000


def test_chosen_examples_without_values_are_refused(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.jsonl"
    chosen.write_text('{"problem": "?", "answer": "1"}\n{"problem": null, "answer": NaN}\n')
    with pytest.raises(ValueError, match=r"line 2: null or NaN under problem, answer"):
        examples_of(build_task("math", path="unused"), str(chosen))


def test_known_values() -> None:
    assert all(map(known, (0, 0.0, "0", False, [], "none")))
    assert not any(map(known, (None, NAN, INFINITY, -INFINITY, "", " ", "NaN")))
