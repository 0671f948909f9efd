"""Letters and texts as answers: what counts as one, and that a text which names them all counts as none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.verify.choice import judge_choice, read_choice
from data.verify.string import judge_string, normal


@pytest.mark.parametrize(
    "text",
    [
        "C",
        " (C) ",
        "C.",
        "c",
        "C. Paris",
        "C) a city of 2 million",
        r"\boxed{C}",
        r"A or B? \boxed{\text{(C)}}",
        r"\boxed{A} no, \boxed{C}",
        "#### C",
        "A is wrong, B too. The answer is C.",
        "A? No.\n**Answer: C**",
        "Answer: C\nbecause A is not.",
    ],
)
def test_one_letter_is_a_choice(text: str) -> None:
    assert judge_choice("C", text).score == 1.0
    assert judge_choice("B", text).reason == "another choice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A B C D",
        "A, B, C and D",
        "A. B. C. D.",
        "(A) (B) (C) (D)",
        r"\boxed{ABCD}",
        r"\boxed{A,B,C,D}",
        r"\boxed{C. or A}",
        r"\boxed{A}\boxed{B}\boxed{C}\boxed{D}"[:-1],
        "The answer is A or B or C or D",
        "The answer is not C",
        "answer: C answer: ",
        "Could be C",
        "CCCC",
        "E",
        "С",  # Cyrillic
        "C" * 100_000,
        "answer is " * 100_000,
        r"\boxed{" * 100_000,
        "\ud800",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    start = time.perf_counter()
    assert judge_choice("C", text).score == 0.0
    assert time.perf_counter() - start < 1.0


def test_other_letters_than_four() -> None:
    assert read_choice("E", "ABCDE") == "E" and read_choice("D", "ABC") is None
    with pytest.raises(ValueError, match="not among A, B, C, D"):
        judge_choice("E", "E")


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("Paris", "paris."),
        ("Paris", "It is \\boxed{Paris}"),
        ("Paris", "thinking\n#### Paris\nyes"),
        ("New York", " new\n  york! "),
        ("Straße", "STRASSE"),
        ("fi", "ﬁ"),
    ],
)
def test_the_same_text_is_right(gold: str, text: str) -> None:
    assert judge_string(gold, text).score == 1.0


@pytest.mark.parametrize(
    "text", ["", "Paris or Rome", "Rome, Paris", "Not Paris", "Pari", "P a r i s", "Paris " * 100_000, "\ud800", "\x00"]
)
def test_a_text_that_merely_holds_it_is_wrong(text: str) -> None:
    verdict = judge_string("Paris", text)
    assert (verdict.score, bool(verdict.reason)) == (0.0, True)


def test_an_empty_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        judge_string(" . ", "")


@given(text=st.text())
def test_no_text_raises(text: str) -> None:
    judge_choice("A", text)
    judge_string("A", text)
    assert normal(normal(text)) == normal(text)
