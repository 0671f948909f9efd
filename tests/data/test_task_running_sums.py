"""Running sums: what the texts hold, how often they slip and are repaired, and a verifier given hostile text."""

from __future__ import annotations

import numpy as np
import pytest

from data.tasks.running_sums import CLOSE, RunningSums, running_sums

TASK = RunningSums(train_size=4000)


def test_a_pass_writes_places_digits_and_sums() -> None:
    assert running_sums("314") == "a33b14c48" and running_sums("95") == "a99b54"
    assert running_sums("314", slip_at=1, slip=3) == "a33b17c41"
    example = {"digits": "314", "passes": ["a33b17c41", "a33b14c48"]}
    assert TASK.prompt(example) == "a3b1c4=" and TASK.target(example) == "<t>a33b17c41Wa33b14c48</t>8"
    assert TASK.verify(example, TASK.target(example)).score == 1


def test_first_passes_slip_and_later_ones_repair() -> None:
    examples = list(TASK.examples("train"))
    wrong = [[part[-1] != running_sums(e["digits"])[-1] for part in e["passes"]] for e in examples]
    lengths = np.array([len(row) for row in wrong])
    assert np.abs(np.bincount(lengths, minlength=8)[1:] / len(wrong) - [0.7 * 0.3**n for n in range(7)]).max() < 0.03
    rates = [np.mean([row[n] for row in wrong if len(row) > n]) for n in range(3)]
    np.testing.assert_allclose(rates, [0.3, 0.075, 0.01875], atol=0.04)
    assert not any(any(row) for row in ([p[-1] != running_sums(e["digits"])[-1] for p in e["passes"]] for e in CLEAN))
    assert all(TASK.verify(e, TASK.target(e)).score == (e["passes"][-1] == running_sums(e["digits"])) for e in examples)


CLEAN = list(RunningSums(slip=0.0).examples("valid"))


def test_rows_belong_to_one_split_and_to_the_alphabet() -> None:
    rows = {split: {e["digits"] for e in TASK.examples(split)} for split in TASK.splits}
    assert not rows["train"] & rows["test"] and set("".join(rows["train"])) == set("01234")
    assert not rows["test"] & rows["valid"]
    assert TASK.examples("train")[7] == RunningSums(train_size=4000).examples("train")[7]
    shown = {c for e in CLEAN for c in TASK.prompt(e) + TASK.target(e)}
    assert shown <= set(TASK.alphabet)


@pytest.mark.parametrize(
    "text", ["", CLOSE, f"{CLOSE}88", f"{CLOSE}٨", f"8{CLOSE}", "8" * 10_000, f"{CLOSE}8.", "\ud800"]
)
def test_hostile_text_is_no_answer(text: str) -> None:
    verdict = TASK.verify({"digits": "314"}, text)
    assert verdict.score == 0 and verdict.parsed is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0},
        {"low": 6},
        {"high": 20},
        {"passes": 0},
        {"slip": 1.5},
        {"repair": -1.0},
        {"again": 2.0},
        {"largest": 10},
    ],
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunningSums(**wrong)  # type: ignore[arg-type]
