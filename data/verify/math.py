"""Mathematical answers in LaTeX, compared by math-verify (github.com/huggingface/Math-Verify), for workers only.

Parsing and comparing can take for ever (`5^{5^{5^5}}`), and no alarm inside the process stops it: call `judge_math`
and `readable` where a wall clock kills the process, as `data.verify.pool` does. What can be refused without parsing is,
and what math-verify calls equal is looked at again by `data.verify.nearness`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.verify.extract import boxed_values
from data.verify.nearness import relatively, right_side
from data.verify.notation import (
    clock,
    grouped,
    integer,
    numeral,
    scientific,
    spelling,
    suspicious_text,
    uniform,
    unit,
    worded,
)
from data.verify.verdict import Verdict

MAX_TAIL = 20_000
MAX_CHARS = 1_000
MAX_DEPTH = 20
MOST_PARSED = 200

_OPEN, _CLOSED = frozenset("{(["), frozenset("})]")
_BLANK = r"(?:\s|\\[ ,;:>]|\\q?quad(?![A-Za-z]))"
_SIDE_BY_SIDE = re.compile(rf"[0-9]{_BLANK}+[0-9]")
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_NUMERIC_COMMANDS = re.compile(r"\\(?:[dtc]?frac|sqrt|cdot|times|div|pi|left|right|(?:text|mathrm)\s*\{[^{}]*\})")
_NAME = re.compile(r"\s*[A-Za-z]\w*\s*")


@dataclass(frozen=True)
class Answer:
    """What a text gives as its answer, or None and the reason; `values`: what stands in each of the boxes."""

    text: str | None
    reason: str
    values: tuple[str, ...] = ()


def read_answer(text: str) -> Answer:
    """Returns the inside of the last `\\boxed{}` in the last MAX_TAIL characters; linear time.

    Boxes side by side are one list: `\\boxed{3}, \\boxed{5}` is read as `3, 5`. Refused: more than MAX_CHARS characters
    that are not one integer, brackets nested more than MAX_DEPTH deep, an empty box.
    """
    values = boxed_values(text[-MAX_TAIL:])
    if not values:
        return Answer(None, "no \\boxed{} in the answer")
    joined = ", ".join(values)
    reason = next(filter(None, map(refusal, (*values, joined))), "")
    return Answer(None, reason) if reason else Answer(joined, "", tuple(values))


def refusal(answer: str) -> str:
    """Returns why an answer is not worth parsing, or an empty text."""
    if not answer.strip():
        return "the box is empty"
    if len(answer) > MAX_CHARS and integer(uniform(answer)) is None:
        return f"the answer has more than {MAX_CHARS} characters"
    if len(answer) > MAX_TAIL:
        return f"the answer has more than {MAX_TAIL} digits"
    if _depth(answer) > MAX_DEPTH:
        return f"the answer is nested more than {MAX_DEPTH} deep"
    return ""


def judge_math(gold: str, text: str) -> Verdict:
    """Scores 1 when the last boxed answer equals `gold`; only to be called where a wall clock can kill the process.

    Boxes side by side earn it as the list that they are, or when every one of them equals `gold`.
    """
    answer = read_answer(text)
    if answer.text is None:
        return Verdict(0.0, None, answer.reason)
    gold = uniform(gold)
    reason = _guesses(gold, uniform(answer.text))
    if reason:
        return Verdict(0.0, answer.text, reason)
    right = _equal(gold, uniform(answer.text))
    if not right and len(answer.values) > 1:
        right = all(not _guesses(gold, value) and _equal(gold, value) for value in map(uniform, answer.values))
    return Verdict(float(right), answer.text, "correct" if right else "another answer")


def readable(gold: str) -> Verdict:
    """Scores 1 when a reference answer can be parsed and equals itself; for workers only."""
    reason, same = refusal(gold), uniform(gold)
    if not reason and integer(same) is None and clock(same) is None and not _verify(same, same):
        reason = "math-verify cannot read it"
    if not reason:
        _verify(same, "1")  # an answer that cannot be computed equals itself at once; against another it hangs
    return Verdict(float(not reason), gold[:MOST_PARSED], reason or "read")


def plain(gold: str) -> bool:
    """Returns whether an answer is a number or fraction so plain that it need not be tried."""
    return (
        re.fullmatch(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?|-?\\d?frac\{[0-9]{1,9}\}\{[1-9][0-9]{0,8}\}", gold) is not None
    )


def warm_up() -> None:
    """Imports math-verify and runs it once, so that the first answer does not wait for it.

    RuntimeError for a version of it whose comparison of numbers cannot be made relative.
    """
    if not _verify("\\frac{1}{2}", "0.5") or _verify("2^{-98}", "2^{-99}"):
        raise RuntimeError("this version of math-verify compares numbers in another way: install math-verify==0.9.0")


def _guesses(gold: str, answer: str) -> str:
    """Returns why an answer is more than one value in disguise, or an empty text."""
    left, equals, _ = answer.rpartition("=")
    if equals and "=" not in gold and not re.search(r"[A-Za-z]", left):
        return "an equation between numbers is not an answer"
    if _SIDE_BY_SIDE.search(answer) and not _SIDE_BY_SIDE.search(gold):
        return "numbers side by side are not an answer"
    words = suspicious_text(answer)
    if words and words not in gold:
        return f"the words {words[:40]!r} change what a number says"
    return _broken_chain(gold, answer) or _other_unit(gold, answer)


def _broken_chain(gold: str, answer: str) -> str:
    """Says so when `x = 23 = 24` is given for 24; of lists and of equations between expressions nothing is said."""
    *left, wanted = _EQUALS.split(gold)
    sides = _EQUALS.split(answer)
    if len(left) > 1 or re.search(r"[,;]", answer) or not all(map(_NAME.fullmatch, left)):
        return ""
    numbers = [side for side in sides if not re.search(r"[A-Za-z]", _NUMERIC_COMMANDS.sub("", side))]
    broken = len(numbers) > 1 and not all(_equal(wanted, uniform(number)) for number in numbers)
    return "the sides of an equation between numbers differ" if broken else ""


def _other_unit(gold: str, answer: str) -> str:
    """Says so when both have a unit that is known and they differ, or the answer alone a base that is not ten."""
    expected, other = unit(gold), unit(answer)
    if expected and other and expected != other:
        return f"the unit is {other[0]}, expected {expected[0]}"
    digits = numeral(answer)
    if digits and digits[1] != "10" and "_" not in gold:
        return f"a numeral of base {digits[1]}"
    return ""


def _equal(gold: str, answer: str) -> bool:
    """Whether two answers in `uniform` notation are equal; what is plainly written does not go through math-verify."""
    if gold == answer:
        return True
    for read in (integer, clock, numeral):
        left, right = read(gold), read(answer)
        if left is not None and right is not None:
            return bool(left == right)
    value = scientific(gold)
    if value is not None and value == scientific(answer):
        return True
    if worded(gold) or worded(answer):
        return spelling(gold) == spelling(answer)
    return _verify(gold, answer)


def _verify(gold: str, answer: str) -> bool:
    from math_verify import verify

    # Gold first: the comparison is not symmetric. No alarms: the pool's wall clock holds where they do not.
    gold, answer = grouped(gold, answer)
    with relatively():
        return bool(verify(list(_parse_gold(gold)), _parse(answer), strict=True, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple[Any, ...]:
    return tuple(_parse(gold))


def _parse(answer: str) -> list[Any]:
    from math_verify import parse

    expressions = parse(
        f"\\boxed{{{answer}}}",
        extraction_config=[_extraction()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return [right_side(expression) for expression in expressions]


@lru_cache(maxsize=1)
def _extraction() -> Any:
    import logging

    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    # It warns at every call that its alarms are off.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    rules = NormalizationConfig(basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="last")
    return LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=rules)


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in _OPEN) - (char in _CLOSED)
        deepest = max(deepest, depth)
    return deepest
