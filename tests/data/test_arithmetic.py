"""The arithmetic parser: exact on what it takes, a reason for everything else, never an exception, never
slow.
"""

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.verify.arithmetic import cut_equals, evaluate


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("1+2*3", 7, (1, 2, 3)),
        ("(1+2)*3", 9, (1, 2, 3)),
        ("8-3-2", 3, (8, 3, 2)),
        ("8/4/2", 1, (8, 4, 2)),
        ("8/3", Fraction(8, 3), (8, 3)),
        ("-3+5", 2, (3, 5)),
        ("2*-3", -6, (2, 3)),
        ("--3", 3, (3,)),
        ("2×6÷4", 3, (2, 6, 4)),
        (" 4 * 3 + 2 + 10 = 24", 24, (4, 3, 2, 10)),
        ("8/(3-8/3)", 24, (8, 3, 8, 3)),
        ("0", 0, (0,)),
    ],
)
def test_values(text: str, value: int | Fraction, numbers: tuple[int, ...]) -> None:
    result = evaluate(text)
    assert (result.value, result.numbers, result.reason) == (value, numbers, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.5*2", "'.' is not part"),
        ("1 5*2", "expected an operator"),
        ("7//2", "whole division"),
        ("2**3", "powers"),
        ("9**9**9**9", "powers"),
        ("2* *3", "expected a number"),
        ("1_0+2", "'_' is not part"),
        ("1e5", "'e' is not part"),
        ("٣+٤", "is not part"),
        ("²+1", "is not part"),
        ("", "empty"),
        ("   ", "empty"),
        ("=24", "empty"),
        ("1/0", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("(1+2", r"'\)' is missing"),
        ("1+2)", r"found '\)'"),
        ("4*3+", "ends too early"),
        ("()", "expected a number"),
        ("05+1", "begins with a zero"),
        ("2(3)", r"found '\('"),
        ("+3", "expected a number"),
        ("1" * 13, "more than 12 digits"),
        ("1" * 10_000_000, "characters"),
        ("(" * 100 + "1" + ")" * 100, "nested|parts"),
        ("-" * 100 + "1", "nested|parts"),
        ("+".join("1" * 100), "parts"),
        ("__import__('os').system('touch /tmp/owned')", "is not part"),
        ("1\x00+2", "is not part"),
        ("1\n\u2028+2", "is not part"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    result = evaluate(text)
    assert result.value is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="0123456789+-*/() =.", max_size=80) | st.text(alphabet="()-1/", max_size=300))
def test_nothing_raises_and_everything_is_quick(text: str) -> None:
    start = time.perf_counter()
    result = evaluate(text)
    assert time.perf_counter() - start < 0.2
    assert (result.value is None) == bool(result.reason)


def tree(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.2:
        return str(draw.randint(0, 20))
    operator = draw.choice("+-*/")
    left, right = tree(draw, depth - 1), tree(draw, depth - 1)
    return draw.choice([f"({left}{operator}{right})", f"{left}{operator}({right})"])


@given(st.integers(0, 2**32))
def test_values_agree_with_pythons_own_arithmetic(seed: int) -> None:
    text = tree(random.Random(seed), 3)
    # Every literal becomes a Fraction, so that Python's evaluation is exact; the text is ours, not a model's.
    exact = "".join(f" Fraction({part}) " if part.isdigit() else part for part in _parts(text))
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert evaluate(text).value == expected


def _parts(text: str) -> list[str]:
    for operator in "+-*/()":
        text = text.replace(operator, f" {operator} ")
    return text.split()


def test_text_after_an_equals_sign_is_cut() -> None:
    assert cut_equals(" 1+2 = 4 = 5") == "1+2"
