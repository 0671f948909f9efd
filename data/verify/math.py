"""Mathematical answers in LaTeX, compared by math-verify (github.com/huggingface/Math-Verify), for workers only.

Parsing and comparing can take for ever (`5^{5^{5^5}}`), and no alarm inside the process stops it: call `judge_math`
and `readable` where a wall clock kills the process, as `data.verify.pool` does. What can be refused without parsing is.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.verify.extract import BOXED, last_boxed
from data.verify.verdict import Verdict

MAX_TAIL = 20_000
MAX_CHARS = 1_000
MAX_DEPTH = 20
MOST_PARSED = 200

_INTEGER = re.compile(r"-?[0-9]{1,15}")
_OPEN, _CLOSED = frozenset("{(["), frozenset("})]")
# What stands between two boxes that are one answer with several values.
_BETWEEN = re.compile(r"(?:[\s,;.$&/|]|\\[(),;\]\[]|\\\\|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}|\\(?:quad|qquad))*")


@dataclass(frozen=True)
class Answer:
    """What a text gives as its answer, or None and the reason."""

    text: str | None
    reason: str


def read_answer(text: str) -> Answer:
    """Returns the inside of the last `\\boxed{}` in the last MAX_TAIL characters; linear time.

    Refused: several boxes side by side (a list of guesses), more than MAX_CHARS characters, brackets nested more than
    MAX_DEPTH deep, an empty box.
    """
    tail = text[-MAX_TAIL:]
    found = last_boxed(tail)
    if found is None:
        return Answer(None, "no \\boxed{} in the answer")
    if _beside(tail):
        return Answer(None, "several boxed answers side by side")
    reason = refusal(found)
    return Answer(None, reason) if reason else Answer(found.strip(), "")


def refusal(answer: str) -> str:
    """Returns why an answer is not worth parsing, or an empty text."""
    if not answer.strip():
        return "the box is empty"
    if len(answer) > MAX_CHARS:
        return f"the answer has more than {MAX_CHARS} characters"
    if _depth(answer) > MAX_DEPTH:
        return f"the answer is nested more than {MAX_DEPTH} deep"
    return ""


def judge_math(gold: str, text: str) -> Verdict:
    """Scores 1 when the last boxed answer equals `gold`; only to be called where a wall clock can kill the process."""
    answer = read_answer(text)
    if answer.text is None:
        return Verdict(0.0, None, answer.reason)
    reason = _guesses(gold, answer.text)
    if reason:
        return Verdict(0.0, answer.text[:MOST_PARSED], reason)
    right = _equal(gold, answer.text)
    return Verdict(float(right), answer.text[:MOST_PARSED], "correct" if right else "another answer")


def readable(gold: str) -> Verdict:
    """Scores 1 when a reference answer can be parsed and equals itself; for workers only."""
    reason = refusal(gold)
    if not reason and not (_parse(gold) and _verify(gold, gold)):
        reason = "math-verify cannot read it"
    if not reason:
        _verify(gold, "1")  # an answer that cannot be computed equals itself at once; against another it hangs
    return Verdict(float(not reason), gold[:MOST_PARSED], reason or "read")


def plain(gold: str) -> bool:
    """Returns whether an answer is a number or fraction so plain that it need not be tried."""
    return (
        re.fullmatch(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?|-?\\d?frac\{[0-9]{1,9}\}\{[1-9][0-9]{0,8}\}", gold) is not None
    )


def warm_up() -> None:
    """Imports math-verify and runs it once, so that the first answer does not wait for it."""
    _verify("\\frac{1}{2}", "0.5")


def _beside(tail: str) -> bool:
    """Whether the box before the last one is parted from it by nothing but separators."""
    last = tail.rfind(BOXED)
    start = tail.rfind(BOXED, 0, last)
    inside = None if start < 0 else last_boxed(tail[:last])
    if inside is None:
        return False
    return _BETWEEN.fullmatch(tail, start + len(BOXED) + len(inside) + 1, last) is not None


def _guesses(gold: str, answer: str) -> str:
    """Returns why an answer is more than one value in disguise, or an empty text."""
    left, equals, _ = answer.rpartition("=")
    if equals and "=" not in gold and not re.search(r"[A-Za-z]", left):
        return "an equation between numbers is not an answer"
    if re.search(r"[0-9]\s+[0-9]", answer) and not re.search(r"[0-9]\s+[0-9]", gold):
        return "numbers side by side are not an answer"
    return ""


def _equal(gold: str, answer: str) -> bool:
    if gold.strip() == answer:
        return True
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    return _verify(gold, answer)


def _verify(gold: str, answer: str) -> bool:
    from math_verify import verify

    # Gold first: the comparison is not symmetric. No alarms: the pool's wall clock holds where they do not.
    return bool(verify(list(_parse_gold(gold)), _parse(answer), strict=True, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple[Any, ...]:
    return tuple(_parse(gold))


def _parse(answer: str) -> list[Any]:
    from math_verify import parse

    return list(
        parse(
            BOXED + answer + "}",
            extraction_config=[_extraction()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
    )


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
