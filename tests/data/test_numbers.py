"""Numbers as people write them, and hostile ones."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.verify.extract import after_marker, boxed_values, tidy
from data.verify.numbers import last_number, read_number, same_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("1,000", 1000),
        ("1,234,567.50", Fraction("1234567.5")),
        ("$18", 18),
        ("\\$18", 18),
        ("$-5", -5),
        ("-$5", -5),
        ("\u22125", -5),
        ("72.", 72),
        ("**72**", 72),
        ("72 clips", 72),
        ("20cm", 20),
        ("50%", 50),
        ("18.00", 18),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("+7", 7),
        ("007", 7),
        ("70{,}000", 70000),
        ("70,\\!000", 70000),
        ("70\\,000", 70000),
        ("70\\;000", 70000),
        ("70\\ 000", 70000),
        ("70~000", 70000),
        ("70\u00a0000", 70000),
        ("70\u2009000", 70000),
        ("70\u202f000", 70000),
        ("1'234\u2019567", 1234567),
        ("1\\,234\\,567.5", Fraction("1234567.5")),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("- 5", -5),
        ("\u20135", -5),
        ("US$500", 500),
        ("Rs.500", 500),
        ("20 m2", 20),
        ("15 kg of CO2", 15),
    ],
)
def test_one_number_is_read(text: str, value: int | Fraction) -> None:
    assert read_number(text).value == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("71 72", "found 2"),
        ("5:30", "found 2"),
        ("", "found 0"),
        ("nan", "found 0"),
        ("inf", "found 0"),
        ("-Infinity", "found 0"),
        ("1e999999", "exponents"),
        ("1E-5", "exponents"),
        ("1" * 10_000_000, "more than 300 characters"),
        ("1" * 250, "more than 40 digits"),
        ("1,2,3", "group thousands"),
        ("10,00", "group thousands"),
        ("3/0", "division by zero"),
        ("1.2.3", "not a number"),
        ("1.5/2", "not a number"),
        ("٧٢", "not ASCII"),
        ("7²", "not ASCII"),
        ("½", "not ASCII"),
        ("70 000", "found 2"),
        ("12\\,50", "group thousands"),
        ("2 1/2", "found 3"),
        ("2\\frac{1}{2}", "found 3"),
        ("5'10", "group thousands"),
        ("x500", "found 0"),
        ("12a500", "found 2"),
        ("12_500", "found 2"),
    ],
)
def test_everything_else_has_a_reason(text: str, reason: str) -> None:
    number = read_number(text)
    assert number.value is None
    assert reason in number.reason


def test_the_last_number_of_a_text() -> None:
    assert last_number("first 3, then 4 apples.").value == 4
    assert last_number("no digits").value is None
    assert last_number("so x is 1e999999").value is None
    assert last_number("9" * 1000).value is None, "the tail of a number is not a number"
    assert last_number("9" * 1000 + " 7 ").value == 7


@pytest.mark.parametrize(
    "text",
    [
        "so $12{,}500$",
        "12\u202f500",
        "12\u00a0500.",
        "12\\,500",
        "12\\ 500",
        "12'500",
        "12 500",
        "1 234 500",
        "12_500",
        "12a500",
        "A500",
        "COVID-500",
        "3/500",
        "\\frac{3}{500}",
        "2^{500}",
        "x^500",
        "3:500",
        "1000-500",
        "2 * 500",
        "2 \\times 500",
        "2 + 500",
        "7²500",
        "12٬500",
        "a" * 280 + " 12\\ 500",
    ],
)
def test_the_tail_of_another_number_is_no_last_number(text: str) -> None:
    assert last_number(text).value not in (500, -500)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so $12{,}500$.", 12500),
        ("12\u202f500 people", 12500),
        ("2 + 498 = 500", 500),
        ("in 2020 500 people", 500),
        ("15 kg of CO2", 15),
        ("12, 500", 500),
        ("是500元", 500),
        ("it costs US$500.00", 500),
    ],
)
def test_whole_numbers_are_last_numbers(text: str, value: int) -> None:
    assert last_number(text).value == value


@given(st.text() | st.text(alphabet="0123456789.,/eE+-$ ", max_size=400))
def test_no_text_raises_or_is_slow(text: str) -> None:
    start = time.perf_counter()
    for number in (read_number(text), last_number(text)):
        assert (number.value is None) == bool(number.reason)
    assert time.perf_counter() - start < 0.2


@given(st.integers(-(10**15), 10**15))
def test_grouped_and_plain_integers_agree(value: int) -> None:
    assert read_number(f"{value:,}").value == read_number(str(value)).value == value


def test_same_number_needs_two_numbers() -> None:
    assert same_number(Fraction(1, 2), Fraction("0.5"))
    assert not same_number(None, None)
    assert not same_number(Fraction(1), None)


def test_the_last_marker_wins() -> None:
    assert after_marker("#### 1\nno #### 2 \nrest") == "2"
    assert after_marker("none") is None


def test_boxed_braces_are_balanced() -> None:
    assert boxed_values("\\boxed{1} and \\boxed{\\frac{1}{2}}.")[-1] == "\\frac{1}{2}"
    assert boxed_values("\\boxed{1") == []
    assert boxed_values("none") == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (r"\fbox{42}", ["42"]),
        (r"\boxed {5}", ["5"]),
        (r"$\boxed 5$", ["5"]),
        (r"\boxed\frac{1}{2}.", [r"\frac{1}{2}"]),
        (r"\boxed -5.", ["-5"]),
        (r"\boxed{\boxed{5}}", ["5"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{5} in the \boxed form, not \boxed.", ["5"]),
        (r"\boxed{5}, \boxed{5.}", ["5"]),
        (r"\boxed{3}, \boxed{5} and $x_2 = \boxed{7}$", ["3", "5", "7"]),
        (r"\boxed{3}. So the answer is \boxed{5}", ["5"]),
        (r"\boxed{3} \boxed{5", []),
        (r"\boxed{\left\{1\right.}", [r"\left\{1\right."]),
    ],
)
def test_the_values_of_the_last_boxes(text: str, values: list[str]) -> None:
    assert boxed_values(text) == values


@given(st.text() | st.text(alphabet="\\\\boxedf{} ,.=a1~", max_size=400))
def test_boxes_and_tidy_take_any_text(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)
    assert len(boxed_values(text)) <= text.count("ox")


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 3000, "\\boxed{1}," * 2000, "\\boxed{1}" + "a= " * 60 + "!\\boxed{2}", "\\boxed " * 3000]
)
def test_boxes_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    boxed_values(text)
    assert time.perf_counter() - start < 0.5
