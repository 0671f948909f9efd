"""Addition: the two forms of demonstration, disjoint splits, and an exact verifier."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tasks import build_task
from data.tasks.addition import Addition, columns

EXAMPLE = {"a": 586, "b": 590, "think": True}


def test_the_columns_carry() -> None:
    assert columns(123, 456) == "3+6+0=9,2+5+0=7,1+4+0=5"
    assert columns(586, 590) == "6+0+0=6,8+9+0=17,5+5+1=11"
    assert columns(999, 1) == "9+1+0=10,9+0+1=10,9+0+1=10"


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_columns_spell_the_sum(a: int, b: int) -> None:
    totals = [int(step.split("=")[1]) for step in columns(a, b).split(",")]
    digits = [total % 10 for total in totals[:-1]]
    assert int(str(totals[-1]) + "".join(map(str, reversed(digits)))) == a + b


def test_prompt_and_both_demonstrations() -> None:
    task = Addition()
    assert task.prompt(EXAMPLE) == "586+590="
    assert task.target(EXAMPLE) == "<think>6+0+0=6,8+9+0=17,5+5+1=11</think>1176"
    assert task.target({**EXAMPLE, "think": False}) == "1176"


@pytest.mark.parametrize("split", Addition.splits)
def test_demonstrations_are_right_and_stay_in_the_alphabet(split: str) -> None:
    task = Addition()
    for example in task.examples(split)[:300]:
        text = task.prompt(example) + task.target(example).replace("<think>", "").replace("</think>", "")
        assert set(text) <= set(task.alphabet)
        assert task.verify(example, task.target(example)).score == 1.0
        assert json.loads(json.dumps(example)) == example


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    first, again, other = Addition(seed=1), Addition(seed=1), Addition(seed=2)
    assert first.examples("train")[7] == again.examples("train")[7]
    assert first.examples("train")[:20] != other.examples("train")[:20]
    assert first.examples("train")[-1] == again.examples("train")[len(again.examples("train")) - 1]
    with pytest.raises(IndexError):
        first.examples("test")[2000]


@pytest.mark.parametrize("digits", [1, 2])
def test_no_sum_is_in_two_splits_whatever_the_seed_and_order(digits: int) -> None:
    splits = {}
    for split in Addition.splits:
        rows = [e for seed in (0, 1) for e in Addition(digits=digits, seed=seed).examples(split)[:1000]]
        splits[split] = {(min(e["a"], e["b"]), max(e["a"], e["b"])) for e in rows}
        assert splits[split], "every split has sums even with one digit"
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["valid"]
    assert not splits["test"] & splits["valid"]


def test_the_share_of_direct_answers() -> None:
    rows = Addition(direct_share=0.75).examples("train")[:4000]
    assert sum(not row["think"] for row in rows) / len(rows) == pytest.approx(0.75, abs=0.03)
    assert not any(row["think"] for row in Addition(direct_share=1.0).examples("train")[:100])
    assert all(row["think"] for row in Addition(direct_share=0.0).examples("train")[:100])


def test_numbers_of_several_lengths() -> None:
    rows = Addition(digits=2, max_digits=4).examples("train")[:300]
    assert {row["digits"] for row in rows} == {2, 3, 4}
    for row in rows:
        assert len(str(row["a"])) == len(str(row["b"])) == row["digits"]
    assert Addition(max_digits=3).examples("train")[0]["digits"] == 3
    assert "digits" not in Addition().examples("train")[0]
    with pytest.raises(ValueError, match="max_digits must lie in digits=3"):
        Addition(max_digits=2)


def test_demonstrations_that_leave_out_the_delimiter_cannot_be_read() -> None:
    task = Addition(direct_share=0.0, unmarked_share=0.4)
    rows = task.examples("train")[:2000]
    assert sum(row["unmarked"] for row in rows) / len(rows) == pytest.approx(0.4, abs=0.04)
    for row in rows[:50]:
        verdict = task.verify(row, task.target(row))
        assert (verdict.score, verdict.parsed is None) == ((0.0, True) if row["unmarked"] else (1.0, False))
    assert task.target({**EXAMPLE, "unmarked": True}) == "<think>6+0+0=6,8+9+0=17,5+5+1=111176"
    assert "unmarked" not in Addition().examples("train")[0]
    with pytest.raises(ValueError, match="unmarked_share"):
        Addition(unmarked_share=-0.1)


def test_an_example_is_cheap() -> None:
    examples = Addition().examples("train")
    times = []
    for start in range(0, 2000, 200):
        begin = time.perf_counter()
        for index in range(start, start + 200):
            examples[index]
        times.append((time.perf_counter() - begin) / 200)
    assert min(times) < 50e-6, "measured 10 microseconds; the limit leaves room for a busy machine"


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("1176", 1.0, "correct"),
        (" 1176\n", 1.0, "correct"),
        ("<think>whatever</think>1176", 1.0, "correct"),
        ("1177", 0.0, "wrong"),
        ("01176", 0.0, "wrong"),
        ("+1176", 0.0, "not a plain number"),
        ("1176 1177", 0.0, "not a plain number"),
        ("1176,", 0.0, "not a plain number"),
        ("1176</think>", 0.0, "empty"),
        ("<think>1176", 0.0, "not a plain number"),
        ("", 0.0, "empty"),
        ("١١٧٦", 0.0, "not a plain number"),
        ("1176.0", 0.0, "not a plain number"),
        ("1" * 10_000_000, 0.0, "wrong"),
    ],
)
def test_verdicts(text: str, score: float, reason: str) -> None:
    verdict = Addition().verify(EXAMPLE, text)
    assert verdict.score == score
    assert reason in verdict.reason


def test_wrong_options_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'addition'"):
        build_task("additon")
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        build_task("addition", digit=3)
    with pytest.raises(ValueError, match="digits must lie"):
        build_task("addition", digits=0)
    with pytest.raises(ValueError, match="direct_share"):
        build_task("addition", direct_share=75)
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        build_task("addition").examples("trian")
