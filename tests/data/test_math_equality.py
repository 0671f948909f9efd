"""Which mathematical answers are equal: tiny and huge numbers, notations, boxes side by side, words and units."""

from collections.abc import Iterator
from fractions import Fraction

import pytest

from data.tasks.math import Math
from data.verify.math import MAX_CHARS, MAX_TAIL, read_answer
from data.verify.nearness import rounds_to
from data.verify.notation import clock, integer, numeral, scientific, uniform, unit, worded
from data.verify.pool import Judge, judge_of

E = r"\emptyset"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with judge_of(Math("unused"), workers=1, seconds=20.0) as judge:
        yield judge


def scores(judge: Judge, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    texts = [answer if "boxed" in answer or "fbox" in answer else f"\\boxed{{{answer}}}" for _, answer in pairs]
    found = judge([{"answer": gold} for gold, _ in pairs], texts)
    return {pair: verdict.score for pair, verdict in zip(pairs, found, strict=True)}


def all_score(judge: Judge, pairs: list[tuple[str, str]], score: float) -> None:
    assert scores(judge, pairs) == dict.fromkeys(pairs, score)


TINY = [
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("2^{-99}", "2^{-98}"),
    ("10^{-20}", "10^{-21}"),
    ("0.0000001", "0.0000002"),
    ("0.000001", "0.0000014"),
    ("1/20!", "1/21!"),
    (r"1.6\times10^{-19}", r"9.1\times10^{-31}"),
    (r"1.602\times10^{-19}", r"1.603\times10^{-19}"),
    ("e^{-100}", "e^{-101}"),
    (r"\frac{\pi}{10^{20}}", r"\frac{\pi}{10^{21}}"),
    (r"\sin(10^{-20})", r"\sin(10^{-21})"),
    ("-10^{-20}", "10^{-20}"),
    ("0", "10^{-20}"),
    ("0", "0.0000001"),
    ("0.0000001", "0"),
    ("1/3000000", "0.0000003"),
]
HOLDERS = [
    (r"(0,10^{-20})", r"(0,10^{-21})"),
    ("(0.0000001,1)", "(0.0000002,1)"),
    (r"[0,10^{-20}]", r"[0,10^{-21}]"),
    (r"\{10^{-20},1\}", r"\{10^{-21},1\}"),
    ("10^{-20}, 3", "10^{-21}, 3"),
    (r"(-\infty,10^{-20})\cup(1,2)", r"(-\infty,10^{-21})\cup(1,2)"),
    (r"\begin{pmatrix}10^{-20}\\1\end{pmatrix}", r"\begin{pmatrix}10^{-21}\\1\end{pmatrix}"),
    (r"0.0000001\%", r"0.0000002\%"),
    (r"10^{-20}\text{ kg}", r"10^{-21}\text{ kg}"),
    ("1+0.0000001i", "1+0.0000002i"),
    ("10^{-20}i", "10^{-21}i"),
    ("x=10^{-20}", "x=10^{-21}"),
    ("x>10^{-20}", "x>10^{-21}"),
    ("x+10^{-20}", "x+10^{-21}"),
    ("10^{-20}x", "10^{-21}x"),
]
HUGE = [
    ("10^{200}+1", "10^{200}"),
    ("2004!", "2006!"),
    ("100!", "100!+1"),
    ("12345678901234567890", "12345678901234567891"),
    (r"6.022\times10^{23}", r"6.023\times10^{23}"),
    (r"\pi+10^{-50}", r"\pi+10^{-60}"),
    (r"\frac{2013^{2013}-2012^{2013}}{2013^{2012}}", r"\frac{2013^{2014}}{2013^{2013}-1}"),
    ("0.1", "0.1000001"),
]


@pytest.mark.parametrize("pairs", [TINY, HOLDERS, HUGE], ids=["tiny", "holders", "huge"])
def test_other_numbers_are_wrong_however_small_the_difference(judge: Judge, pairs: list[tuple[str, str]]) -> None:
    all_score(judge, pairs, 0.0)


def test_equal_numbers_and_roundings_stay_right(judge: Judge) -> None:
    all_score(
        judge,
        [
            (r"\frac13", "0.333333"),
            (r"\frac13", "0.3333333"),
            ("-1/3", "-0.333333"),
            (r"\frac{1}{60}", "0.016667"),
            (r"\frac{1}{700}", "0.001429"),
            (r"\pi", "3.141593"),
            (r"\pi", "3.14159265"),
            (r"e^{-50}", r"1.92875\times10^{-22}"),
            ("(1/3, 2)", "(0.333333, 2)"),
            ("0", "0.0"),
            ("0.3", "0.1+0.2"),
            ("0.5", r"\frac12"),
            ("12.8", "12.80"),
            ("10^{-7}", "0.0000001"),
            (r"1.6\times10^{-19}", r"1.60\cdot 10^{-19}"),
            (r"6.02\times10^{23}", "602000000000000000000000"),
            ("2004!", r"2004\cdot 2003!"),
            (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
            ("0", r"\sqrt{3+2\sqrt2}-1-\sqrt2"),
            (r"50\%", "0.5"),
            (r"9\%", "9"),
        ],
        1.0,
    )
    all_score(judge, [(r"\frac13", "0.333"), (r"\pi", "3.14"), ("3.14", r"\pi"), (r"\frac{22}{7}", r"\pi")], 0.0)


def test_roundings_by_hand() -> None:
    third, tiny = Fraction(1, 3), Fraction(1, 3_000_000)
    assert rounds_to(third, Fraction("0.333333")) and not rounds_to(third, Fraction("0.33333"))
    assert rounds_to(tiny, Fraction("0.000000333333")) and not rounds_to(tiny, Fraction("0.000000333"))
    assert rounds_to(Fraction("3.14159265"), Fraction("3.1415927"))
    assert rounds_to(Fraction("0.30000000000000004"), Fraction("0.3"))
    assert not rounds_to(Fraction("0.001"), Fraction("0.0010004"))
    assert not rounds_to(Fraction(0), Fraction(1, 10**40)) and rounds_to(Fraction(0), Fraction(0))


def test_boxes_and_blanks(judge: Judge) -> None:
    all_score(
        judge,
        [
            *(("42", text) for text in (r"\fbox{42}", r"\boxed {42}", r"$\boxed 42$.", r"\boxed{42} \boxed{42}")),
            *(("5", text) for text in ("5.", r"5 \ ", "~5~", "5\\\\", r"5\quad", "\u20095\u00a0", r"\;5\,.")),
            *(
                ("10080", text)
                for text in (r"10\,080", "10\u202f080", "10\u00a0080", "10{,}080", r"10,\!080", "10 080")
            ),
            (r"10\,080", "10080"),
            ("1234567", r"1\ 234\ 567"),
            (r"\frac{3}{8}", r"\dfrac 3 8"),
            *((E, text) for text in (r"\varnothing", "∅", r"\O", r"\{\}")),
            (r"\varnothing", E),
            *(
                ("6:00 PM", t)
                for t in ("6:00PM", "6:00\u202fPM", r"6:00~\text{PM}", r"6:00\text{ p.m.}", "6:00\u2009pm")
            ),
            (r"6:00\text{ p.m.}", "6:00 PM"),
            ("E", r"\text{(E)}."),
            ("7" * 5000, "7" * 5000),
        ],
        1.0,
    )
    all_score(judge, [("500", r"12\,500"), ("8125", r"2^3\,125"), ("6:00 PM", "6:00 AM"), ("6:00 PM", "6:01 PM")], 0.0)
    all_score(judge, [("7" * 5000, "7" * 4999 + "8"), ("144", r"12\,12"), (E, "0")], 0.0)


def test_boxes_side_by_side_are_one_list(judge: Judge) -> None:
    right = [
        ("3, 5, 7", r"$\boxed{3}, \boxed{5}, \boxed{7}$"),
        ("3, 5, 7", r"\boxed{7}, \boxed{3} and \boxed{5}"),
        (r"-2, 1", r"$x=\boxed{-2}$ or $x = \boxed{1}$"),
        ("24", r"\boxed{23} is too small: \boxed{24}"),
        ("24", r"\boxed{24}, that is $\boxed{24}$"),
        (r"\frac12", r"$\boxed{\frac12} = \boxed{0.5}$"),
    ]
    all_score(judge, right, 1.0)
    hedges = [
        r"\boxed{23}, \boxed{24}",
        r"\boxed{23}\boxed{24}",
        r"$x=\boxed{23}$ or $x = \boxed{24}$",
        "- \\boxed{23}\n- \\boxed{24}",
        "1. \\boxed{23}\n2. \\boxed{24}",
        r"(a) \boxed{23} (b) \boxed{24}",
        r"**\boxed{23}** or maybe **\boxed{24}**",
        r"Answer 1: \boxed{23}, Answer 2: \boxed{24}",
        r"\fbox{23}=\boxed {24}",
        r"\boxed{24} \text{ or } \boxed{23, 24}",
    ]
    all_score(judge, [(gold, hedge) for hedge in hedges for gold in ("23", "24")], 0.0)
    all_score(judge, [("3, 5, 7", r"\boxed{3}, \boxed{5}"), ("3, 5", r"\boxed{3}, \boxed{5}, \boxed{7}")], 0.0)


def test_one_box_with_more_than_its_value_earns_nothing(judge: Judge) -> None:
    more = [
        "x=23=24",
        r"x=\frac{46}{2}=24",
        r"24 \text{ (or 23)}",
        r"24\text{ or 23}",
        r"24\text{, but } 25\text{.}",
        r"24\text{ m}, 25\text{ m}",
        r"24 \quad\text{(alternatively 23)}",
        r"24 \text{ is not the answer}",
        r"24\text{ thousand}",
        r"23\quad 24",
        "24_{23}",
    ]
    all_score(judge, [("24", answer) for answer in more], 0.0)
    all_score(judge, [("24", r"x=\frac{48}{2}=24"), ("24", r"V = 12\cdot 2 = 24\text{ cm}"), ("x=24", "24")], 1.0)


def test_other_units_bases_variables_and_equations_are_wrong(judge: Judge) -> None:
    wrong = [
        (r"10\text{ cm}", r"10\text{ inches}"),
        (r"5\text{ cm}^2", r"5\text{ cm}^3"),
        (r"44\%", r"44^\circ"),
        (r"\$5", r"5\text{ cents}"),
        ("11_2", "11_3"),
        ("776", "776_8"),
        ("3m", "3"),
        ("2t", "2c"),
        ("2x+3t", "2x+3"),
        ("x^2=-1", "x^2=-2"),
        (r"\sin x=2", r"\sin x=3"),
        (r"\log_{36}(216)=\frac32", r"\log_{36}(36)=1"),
    ]
    all_score(judge, wrong, 0.0)
    right = [
        (r"10\text{ cm}", r"10\text{ centimeters}"),
        (r"5 \text{ cm}^2", "5"),
        (r"90^\circ", "90"),
        ("776_8", "776_{8}"),
        ("3m", r"m\cdot3"),
        ("x + c", "c + x"),
        ("2x+y=3", "4x+2y=6"),
        (r"\cos(\pi)=-1,\sin(\pi)=0", r"\cos(\pi)=-1,\sin(\pi)=0 "),
        (r"1 \text{ if } n=2, \text{ else } 2", r"1\text{ if }n=2,\text{ else }2"),
    ]
    all_score(judge, right, 1.0)


def test_notations_without_a_parser() -> None:
    assert uniform(r" ~1\,234\,567.\quad") == "1234567" and uniform(r"2^3\,125") == r"2^3\,125"
    assert integer("-007") == (True, "7") == integer("-7") and integer("-0") == (False, "0") and integer("1.0") is None
    assert clock(r"06:05\text{ a.m.}") == ("6", "05", "am") and clock("6:05") is None
    assert numeral(r"0A1_{12}") == ("A1", "12") and numeral("x_1") is None
    assert scientific(r"-1.5 \times 10^{-3}") == Fraction(-15, 10_000) and scientific("1e5") is None
    assert unit(r"3\mathrm{~m}") == ("m", "") == unit(r"3\text{ metres}") and unit("3") is None
    assert worded(r"1\text{ a }2\text{ b}") and not worded(r"1\text{ a}^2") and not worded(r"1\text{ and }2")


def test_the_bounds_of_an_answer() -> None:
    assert read_answer(f"\\boxed{{{'1' * (MAX_CHARS + 1)}}}").reason == ""
    assert "characters" in read_answer(f"\\boxed{{{'1,' * MAX_CHARS}}}").reason
    assert "no \\boxed" in read_answer(f"\\boxed{{{'1' * MAX_TAIL}}}").reason
