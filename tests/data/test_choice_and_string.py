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
        r"\boxed{C: A longer sentence}",
        "C: A longer sentence. A good one.",
        "C - a city",
        "C \u2014 A city",
        "option C",
        "The correct option is (C).",
        "Answer: C)",
        r"\fbox{C}",
        r"\boxed {C}",
        r"\boxed C",
        r"\boxed{C}, \boxed{C}",
        r"\boxed{\textbf{(C)}\ 42}",
        r"\boxed{\text{option C}\quad}",
        "\u2009~C\\\\",
        "c. a city",
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
        r"\boxed{A}\boxed{C}",
        r"\boxed{A}, \boxed{B}, \boxed{C}, \boxed{D}",
        r"$\boxed{B}$ or $\boxed{C}$",
        "C: A",
        "C: A or B",
        "C: A is right",
        "C - A",
        "c. or a",
        "A longer sentence",
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
    assert judge_choice("E", r"\boxed{E: A longer sentence}", "ABCDE").score == 1.0
    assert judge_choice("A", r"\boxed{E: A longer sentence}", "ABCDE").score == 0.0
    assert read_choice(r"\boxed{E - B}", "ABCDE") is None and read_choice("E. I think", "ABCDEFGHI") == "E"
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
        ("Paris", r"\boxed{\text{Paris}}"),
        ("Paris", r"\fbox{Paris}"),
        ("Paris", r"\boxed{Paris} \boxed{Paris}"),
        ("New York", "~New\u00a0York\\\\"),
        ("x^2", "x²"),
    ],
)
def test_the_same_text_is_right(gold: str, text: str) -> None:
    assert judge_string(gold, text).score == 1.0


def test_raised_and_lowered_digits_are_not_on_the_line() -> None:
    assert judge_string("22", "2²").score == judge_string("H2O", "H₂O").score == 0.0
    for gold in ("Paris", "Rome"):
        assert judge_string(gold, r"\boxed{Paris}, \boxed{Rome}").score == 0.0


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
