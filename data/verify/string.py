"""Answers that are a text: the same after spaces, case and outer punctuation are evened out, or not at all."""

import re
import unicodedata

from data.verify.extract import answer_places, tidy
from data.verify.verdict import Verdict

MAX_CHARS = 2_000
MAX_TAIL = 20_000
MOST_PARSED = 200
_OUTER = " \t\r\n.,;:!\"'`“”‘’*"
_DRESS = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textrm|textit)\s*\{([^{}]*)\}")
# Compatibility form writes these on the line: `2²` would be `22`.
_RAISED = {"<super>": "^", "<sub>": "_"}


def judge_string(gold: str, text: str) -> Verdict:
    """Scores 1 when the whole answer is `gold` after `normal`; a text that merely holds it scores 0.

    The answer stands in the last `\\boxed{}`, in `\\text{}` or not, else behind the last `####`, else it is the whole
    text. Of boxes side by side each must be `gold`. ValueError for a `gold` of which nothing is left.
    """
    wanted = normal(gold)
    if not wanted:
        raise ValueError(f"nothing is left of the reference answer {gold!r} to compare with")
    places = answer_places(text[-MAX_TAIL:])
    place = ", ".join(places)
    if not place or len(place) > MAX_CHARS:
        return Verdict(0.0, None, f"the answer has {len(place)} characters, expected 1 to {MAX_CHARS}")
    right = all(wanted in (normal(answer), normal(_undressed(answer))) for answer in places)
    return Verdict(float(right), place[:MOST_PARSED], "correct" if right else "another answer")


def normal(text: str) -> str:
    """Returns a text in compatibility form and folded case, with single spaces and without outer punctuation."""
    on_the_line = "".join(_RAISED.get(unicodedata.decomposition(char).partition(" ")[0], "") + char for char in text)
    return " ".join(unicodedata.normalize("NFKC", on_the_line).casefold().split()).strip(_OUTER)


def _undressed(place: str) -> str:
    return tidy(_DRESS.sub(r"\1", place).strip(" $"))
