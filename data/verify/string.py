"""Answers that are a text: the same after spaces, case and outer punctuation are evened out, or not at all."""

import unicodedata

from data.verify.extract import answer_place
from data.verify.verdict import Verdict

MAX_CHARS = 2_000
MAX_TAIL = 20_000
MOST_PARSED = 200
_OUTER = " \t\r\n.,;:!\"'`“”‘’*"


def judge_string(gold: str, text: str) -> Verdict:
    """Scores 1 when the whole answer is `gold` after `normal`; a text that merely holds it scores 0.

    The answer stands in the last `\\boxed{}`, else behind the last `####`, else it is the whole text. ValueError for a
    `gold` of which nothing is left.
    """
    wanted = normal(gold)
    if not wanted:
        raise ValueError(f"nothing is left of the reference answer {gold!r} to compare with")
    place = answer_place(text[-MAX_TAIL:])
    if not place or len(place) > MAX_CHARS:
        return Verdict(0.0, None, f"the answer has {len(place)} characters, expected 1 to {MAX_CHARS}")
    right = normal(place) == wanted
    return Verdict(float(right), place[:MOST_PARSED], "correct" if right else "another answer")


def normal(text: str) -> str:
    """Returns a text in compatibility form and folded case, with single spaces and without outer punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_OUTER)
