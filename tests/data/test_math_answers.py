"""Mathematical answers: what is read, what is compared, what is refused, and the strings that hang other verifiers."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.tasks import Verdict, build_task
from data.tasks.math import SUFFIX, Math
from data.verify import gold
from data.verify.math import MAX_CHARS, MAX_DEPTH, judge_math, plain, read_answer
from data.verify.pool import Judge, judge_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the mathematics files are not in {SHARED}")
MARK = Path("/tmp/sagax_math_mark")
BOMB = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}"
ATTACKS = {
    "list by braces": r"\boxed{\{23,24\}}",
    "list by commas": r"\boxed{23,24}",
    "list by boxes": r"\boxed{23}\boxed{24}",
    "list by boxes and words": r"$\boxed{23}$ or $\boxed{24}$",
    "alternatives": r"\boxed{23 \text{ or } 24}",
    "equation of numbers": r"\boxed{23=24}",
    "chain of guesses": r"\boxed{22=23=24}",
    "numbers side by side": r"\boxed{12 12}",
    "plus or minus": r"\boxed{23 \pm 1}",
    "interval": r"\boxed{[0,100]}",
    "membership": r"\boxed{x \in \{23,24\}}",
    "inequality": r"\boxed{x > 23}",
    "matrix": r"\boxed{\begin{pmatrix}24\\23\end{pmatrix}}",
    "union": r"\boxed{24 \cup 23}",
    "unclosed box": r"\boxed{24",
    "no box": "24",
    "dollars only": "$24$",
    "empty box": r"\boxed{}",
    "box in the thought": r"<think>\boxed{24}</think> 24",
    "code": rf"__import__('os').system('touch {MARK}')",
    "code in a box": rf"\boxed{{__import__('os').system('touch {MARK}')}}",
    "code in a text": rf"\boxed{{\text{{__import__('os').system('touch {MARK}')}}}}",
    "deep nesting": r"\boxed{" + "{" * 5000 + "24" + "}" * 5000 + "}",
    "deep fractions": r"\boxed{" + r"\frac{1}{" * 300 + "24" + "}" * 300 + "}",
    "many boxes": r"\boxed{" * 5000,
    "ten million nines": r"\boxed{" + "9" * 10_000_000 + "}",
    "ten million letters": "a" * 10_000_000,
    "surrogate": "\\boxed{\ud800}",
    "nul": "\\boxed{\x00}",
    "other digits": r"\boxed{٢٤}",
}
# These take longer than anybody waits: only the wall clock ends them.
BOMBS = {"issue 65": BOMB, "tower": "9^{9^{9^9}}", "factorial": "10000000!"}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with judge_of(Math("unused"), workers=1, seconds=20.0) as judge:
        yield judge


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def verdict(judge: Judge, answer: str, text: str) -> Verdict:
    return judge([{"problem": "?", "answer": answer}], [text])[0]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attacks_earn_nothing(judge: Judge, attack: str) -> None:
    found = verdict(judge, "24", ATTACKS[attack])
    assert (found.score, bool(found.reason)) == (0.0, True) and found.reason != "timeout"
    assert not MARK.exists()


def test_bombs_are_killed_by_the_wall_clock_and_the_rest_is_judged() -> None:
    texts = [rf"\boxed{{{bomb}}}" for bomb in BOMBS.values()] + [r"\boxed{24}"] * 3
    with judge_of(Math("unused"), workers=2, seconds=1.0) as judge:
        verdicts = judge([{"answer": "24"}] * len(texts), texts)
        assert judge.timeouts + judge.deaths == len(BOMBS)
    assert verdicts[0] == Verdict(0.0, None, "timeout")
    assert [found.score for found in verdicts] == [0.0] * len(BOMBS) + [1.0] * 3


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("24", r"so \boxed{24}"),
        ("24", r"first \boxed{23}, but no: \boxed{24}."),
        ("24", r"\boxed{x = 24}"),
        ("24", r"\boxed{24\text{ km}}"),
        ("24", r"<think>\boxed{1}</think>\boxed{\frac{48}{2}}"),
        ("12.8", r"\boxed{\frac{64}{5}}"),
        (r"\frac{4}{3}", r"\boxed{\dfrac43}"),
        ("1,234", r"\boxed{1234}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        (r"\text{Evelyn}", r"\boxed{Evelyn}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3,\pi/2)}"),
        ("23,24", r"\boxed{24, 23}"),
    ],
)
def test_equal_answers_are_right(judge: Judge, answer: str, text: str) -> None:
    assert verdict(judge, answer, text).score == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("12.8", r"\boxed{12.7}"),
        ("24", r"\boxed{-24}"),
        (r"\frac{4}{3}", r"\boxed{\frac{3}{4}}"),
        (r"\text{Evelyn}", r"\boxed{\text{Bob}}"),
        ("23,24", r"\boxed{23}"),
        ("x", r"\boxed{y}"),
    ],
)
def test_other_answers_are_wrong(judge: Judge, answer: str, text: str) -> None:
    assert verdict(judge, answer, text).reason == "another answer"


def test_what_is_refused_before_parsing() -> None:
    assert read_answer("24").reason == "no \\boxed{} in the answer"
    assert read_answer(r"\boxed{1} and \boxed{2}").text == "1, 2"
    assert read_answer(r"\boxed{1} is wrong: \boxed{2}").text == "2"
    assert "characters" in read_answer(f"\\boxed{{{'x' * (MAX_CHARS + 1)}}}").reason
    assert "nested" in read_answer(f"\\boxed{{{'(' * (MAX_DEPTH + 1)}}}").reason


def test_plain_answers_need_no_parser() -> None:
    assert all(map(plain, ("24", "-3", "12.8", r"\frac{4}{3}", r"-\dfrac{1}{2}")))
    assert not any(map(plain, ("", "1,234", "x", r"\frac{1}{0}", "1e5", "٣", "24 ")))
    assert judge_math("24", r"\boxed{24}").score == 1.0


def test_verify_is_safe_outside_a_worker() -> None:
    task = Math("unused")
    assert task.verify({"answer": "24"}, r"\boxed{\frac{48}{2}}").score == 1.0
    assert task.verify({"answer": "24"}, r"\boxed{23}").score == 0.0


def rows(folder: Path, name: str, *found: dict[str, Any]) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


def test_rows_of_every_form(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": f"Two? {SUFFIX}"}]
    rows(tmp_path, "train/a.jsonl", {"problem": "One?", "answer": 1.0}, {"question": "List?", "answer": ["$4$", "5"]})
    rows(tmp_path, "one.jsonl", {"prompt": prompt, "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 7}})
    rows(tmp_path, "test.json", {"problem": "Three?", "solution": r"It is $\boxed{3}$."})
    rows(tmp_path, "history.json", {"0": [0.5, 1.0]})
    (tmp_path / "whole.json").write_text(json.dumps([{"problem": "Six?", "answer": "6"}]))
    task = build_task("math", path=str(tmp_path))
    assert task.splits == ("one", "test", "train", "train/a", "whole")
    assert [row["answer"] for row in task.examples("train")] == ["1", "4, 5"]
    assert task.examples("one") == [{"problem": "Two?", "answer": "2", "index": 7}]
    assert task.prompt(task.examples("one")[0]) == f"Two? {SUFFIX}\n"
    assert task.target(task.examples("test")[0]) == r"It is $\boxed{3}$."
    assert task.target(task.examples("whole")[0]) == r"\boxed{6}"


def test_unreadable_references_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = ["", r"\div", "(" * 100, r"\infty \cup \{"]
    found = [{"problem": f"{n}?", "answer": answer} for n, answer in enumerate([*bad, "24", r"\sqrt{2}"])]
    folder = rows(tmp_path, "train.jsonl", *found)
    with pytest.warns(UserWarning, match=r"4 of 6 rows are left out.*: '', '\\\\div', '\(\("):
        kept = build_task("math", path=str(folder)).examples("train")
    assert [row["answer"] for row in kept] == ["24", r"\sqrt{2}"]
    monkeypatch.setattr(gold, "_try", lambda *_: pytest.fail("tried again though it is remembered"))
    assert set(gold.unreadable([row["answer"] for row in found])) == set(bad)


@pytest.mark.more
def test_references_that_hang_are_left_out_and_not_remembered() -> None:
    for _ in range(2):
        assert gold.unreadable([BOMB, r"\sqrt{2}"], seconds=2.5) == {BOMB: "timeout"}


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="math needs path"):
        build_task("math")
    with pytest.raises(FileNotFoundError, match="no folder"):
        build_task("math", path=str(tmp_path / "no")).examples("train")
    with pytest.raises(FileNotFoundError, match="has rows with a problem"):
        build_task("math", path=str(tmp_path)).examples("train")
    rows(tmp_path, "train.jsonl", {"problem": "?", "answer": "1"}, {"answer": "2"})
    with pytest.raises(ValueError, match="row 1: no problem; the row has answer"):
        build_task("math", path=str(tmp_path)).examples("train")
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(ValueError, match="neither JSON nor JSON lines"):
        build_task("math", path=str(tmp_path)).examples("train")


@needs_data
def test_the_one_shot_rows_and_their_answers(judge: Judge) -> None:
    task = build_task("math", path=str(SHARED / "one_shot_rlvr"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = task.examples("pi1_r128")
    assert len(examples) == 128 and {row["index"] for row in examples} == {124}
    assert task.prompt(examples[0]).endswith(f"is \\( 32 \\) pounds. {SUFFIX}\n")
    assert verdict(judge, examples[0]["answer"], r"\boxed{12.8}").score == 1.0
    assert verdict(judge, examples[0]["answer"], r"\boxed{12.7}").score == 0.0


@needs_data
def test_solutions_earn_their_own_reward(judge: Judge) -> None:
    task = build_task("math", path=str(SHARED / "deepscaler"))
    examples = task.examples("test/aime")
    assert len(examples) == 30
    assert all(found.score == 1.0 for found in judge(examples, [rf"\boxed{{{row['answer']}}}" for row in examples]))
