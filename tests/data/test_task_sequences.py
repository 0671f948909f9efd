"""Selective copying and parity: prompts, answers, splits, and verdicts on hostile text."""

import json
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tasks import Task, build_task
from data.tasks.parity import Parity
from data.tasks.selective_copying import SelectiveCopying

TEXT = {"text": "..c.aa.b", "asked": 3}
BITS = {"bits": "0110100"}
TASKS: dict[str, Task] = {
    "selective_copying": SelectiveCopying(length=24, tokens=6, symbols=5),
    "parity": Parity(max_length=12, test_min_length=12, test_max_length=20),
}
both = pytest.mark.parametrize("name", TASKS)


def test_prompts_and_answers() -> None:
    copying, parity = SelectiveCopying(), Parity()
    assert copying.prompt(TEXT) == "..c.aa.b???"
    assert [copying.target({**TEXT, "asked": k}) for k in (1, 2, 3, 4)] == ["c", "a", "a", "b"]
    assert parity.prompt(BITS) == "0110100="
    assert parity.target(BITS) == "1"
    assert parity.target({"bits": "0000"}) == "0"
    assert parity.target({"bits": "1001"}) == "0"


def test_selective_copying_has_the_papers_vocabulary() -> None:
    task = SelectiveCopying()
    assert len(task.alphabet) == len(set(task.alphabet)) == 16
    rows = task.examples("train")[:500]
    assert all(len(row["text"]) == 64 and len(row["text"].replace(".", "")) == 16 for row in rows)
    assert {row["asked"] for row in rows} == set(range(1, 17))
    filled = [place for row in rows for place, char in enumerate(row["text"]) if char != "."]
    thirds = [sum(place // 22 == third for place in filled) / len(filled) for third in range(3)]
    assert thirds == pytest.approx([22 / 64, 22 / 64, 20 / 64], abs=0.03), "letters stand anywhere equally often"
    letters = "".join(row["text"] for row in rows).replace(".", "")
    shares = [letters.count(letter) / len(letters) for letter in "abcdefghijklmn"]
    assert shares == pytest.approx([1 / 14] * 14, abs=0.02)


def test_parity_lengths_and_answers_are_uniform() -> None:
    task = Parity()
    train, test = (task.examples(split)[:1500] for split in ("train", "test"))
    assert {len(row["bits"]) for row in train} == set(range(1, 41))
    assert min(len(row["bits"]) for row in test) >= 40
    assert max(len(row["bits"]) for row in test) > 240
    assert sum(len(row["bits"]) > 20 for row in train) / 1500 == pytest.approx(0.5, abs=0.06)
    assert sum(task.target(row) == "1" for row in test) / 1500 == pytest.approx(0.5, abs=0.06)


@both
def test_demonstrations_are_right_and_stay_in_the_alphabet(name: str) -> None:
    task = TASKS[name]
    for row in chain.from_iterable(task.examples(split)[:200] for split in task.splits):
        assert set(task.prompt(row) + task.target(row)) <= set(task.alphabet or "")
        assert task.verify(row, task.target(row)).score == 1.0
        assert json.loads(json.dumps(row)) == row


@both
def test_examples_depend_on_seed_split_and_index_alone(name: str) -> None:
    first, again, other = (build_task(name, seed=seed).examples("train") for seed in (1, 1, 2))
    assert first[7] == again[7]
    assert first[:20] != other[:20]
    assert first[:20] != build_task(name, seed=1).examples("valid")[:20]


def test_no_text_is_in_two_splits_whatever_the_seed() -> None:
    small: dict[str, tuple[dict[str, Any], str]] = {
        "selective_copying": (dict(length=6, tokens=3, symbols=4), "text"),
        "parity": (dict(min_length=8, max_length=8, test_min_length=8, test_max_length=8), "bits"),
    }
    for name, (options, key) in small.items():
        found = {
            split: {row[key] for seed in (0, 1) for row in build_task(name, seed=seed, **options).examples(split)[:500]}
            for split in ("train", "valid", "test")
        }
        assert all(found.values())
        assert not found["train"] & found["test"]
        assert not found["train"] & found["valid"]
        assert not found["valid"] & found["test"]


@pytest.mark.parametrize("text", ["", "b ", " a", "a\n", "aa", "A", "а", "b", ".", "?", "\x00", "a" * 10_000_000])
def test_selective_copying_takes_the_letter_alone(text: str) -> None:
    assert SelectiveCopying().verify(TEXT, "a").score == 1.0
    assert SelectiveCopying().verify(TEXT, text).score == 0.0


@pytest.mark.parametrize("text", ["", "0", "1 ", " 1", "01", "11", "1.0", "١", "odd", "1" * 10_000_000])
def test_parity_takes_the_bit_alone(text: str) -> None:
    assert Parity().verify(BITS, "1").score == 1.0
    assert Parity().verify(BITS, text).score == 0.0


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert SelectiveCopying().verify(TEXT, text).score == float(text == "a")
    assert Parity().verify(BITS, text).score == float(text == "1")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens must lie in 1\.\.length=64, got 65"):
        build_task("selective_copying", tokens=65)
    with pytest.raises(ValueError, match=r"symbols must lie in 2\.\.26, got 27"):
        build_task("selective_copying", symbols=27)
    with pytest.raises(ValueError, match="only 12 texts are too few"):
        build_task("selective_copying", length=6, tokens=1, symbols=2)
    with pytest.raises(ValueError, match="min_length <= max_length and 8 <= max_length, got 9 and 8"):
        build_task("parity", min_length=9, max_length=8)
    with pytest.raises(ValueError, match="test_max_length"):
        build_task("parity", test_min_length=1, test_max_length=3)
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        build_task("parity").examples("trian")
