"""Where the answer stands in a text: after a marker, or in the last `\\boxed{...}`; linear time."""

import re
from typing import NamedTuple

# TeX takes one token where there is no brace: a number, a command or a letter. A mention in prose has none of these.
_BOX = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<brace>\{)|(?=[-+]?(?:\.?[0-9]|\\[A-Za-z]|[A-Za-z](?![A-Za-z]))))"
)
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_ENDS = re.compile(r"\\.|[{}$\s]", re.DOTALL)
_CLOSE_MATH = (r"\)", r"\]", r"\\")

# What stands between two boxes that are one answer with several values: punctuation, the words of a list, and a label
# (`x =`, `b)`, `Answer 2:`).
_BETWEEN = re.compile(
    r"(?:[\s,;.:=$&/|*_~\u2010-\u2015-]|\\[(),;:!>\]\[ ]|\\\\|\\(?:q?quad|l?or|vee|l?and|wedge)(?![A-Za-z])"
    r"|\\(?:text|mbox|mathrm)\{\s*(?:and|or)\s*\}"
    r"|\b(?i:and|or|also|else|either|maybe|perhaps|possibly|alternatively|both|plus)\b"
    r"|(?<![A-Za-z0-9])(?:(?i:answer|case|candidate|guess|option|part|solution)\s)?"
    r"\(?(?:[A-Za-z][0-9]?|[A-Za-z]_\{?\w\}?|[0-9]{1,2})\s?[=:.)])*"
)
MOST_BETWEEN = 200

# Blanks, as text and as TeX, and the punctuation of a sentence; the second reads a text from its end. The full stop of
# `\right.` is a bracket.
_BLANK = r"[\s~\u200b\u2060\ufeff]"
_LEADING = re.compile(rf"(?:{_BLANK}|\\[ ,;:!>]|\\\\|\\q?quad(?![A-Za-z]))*")
_TRAILING = re.compile(rf"(?:{_BLANK}|[,;]|\.(?!thgir\\)|[:!>]\\|dauqq?\\|\\)*")


class Box(NamedTuple):
    """A box's place in a text, from its backslash to behind its brace, and what is in it."""

    start: int
    end: int
    inside: str


def after_marker(text: str, marker: str = "####") -> str | None:
    """Returns the rest of the line after the last marker, stripped, or None without a marker."""
    _, found, rest = text.rpartition(marker)
    return rest.partition("\n")[0].strip() if found else None


def boxed_values(text: str) -> list[str]:
    """Returns what stands in the last box and in those before it that are parted from it by no more than the signs and
    words of a list, in order, each once; empty where the last box is not closed or there is none.

    `\\boxed{3}, \\boxed{5}` is one answer with two values, and so is `x=\\boxed{3}` or `x=\\boxed{5}`. A box behind a
    sentence is an answer of its own.
    """
    return list(dict.fromkeys(tidy(box.inside) for box in _last_boxes(text)))


def answer_places(text: str) -> list[str]:
    """Returns the values of the last boxes, else what follows the last `####` on its line, else the whole text."""
    boxed = boxed_values(text)
    if boxed:
        return boxed
    marked = after_marker(text)
    return [tidy(text if marked is None else marked)]


def tidy(text: str) -> str:
    """Returns a text without blanks at its ends, plain or TeX's (`~`, `\\,`, `\\quad`), nor punctuation behind it."""
    start = _LEADING.match(text)
    text = text[start.end() :] if start else text
    behind = _TRAILING.match(text[::-1])
    return text[: len(text) - behind.end()] if behind else text


def _last_boxes(text: str) -> list[Box]:
    found: list[Box] = []
    for match in reversed(list(_BOX.finditer(text))):
        box = _read_box(text, match)
        if box is None or (found and not _beside(text, box, found[0])):
            break
        found.insert(0, box)
    return found


def _beside(text: str, box: Box, after: Box) -> bool:
    """Whether nothing but the signs and words of a list parts two boxes."""
    return 0 <= after.start - box.end <= MOST_BETWEEN and _BETWEEN.fullmatch(text, box.end, after.start) is not None


def _read_box(text: str, match: re.Match[str]) -> Box | None:
    braced = match["brace"] is not None
    depth = int(braced)
    for token in (_BRACES if braced else _ENDS).finditer(text, match.end()):
        mark = token[0]
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if braced and depth == 0:
            return Box(match.start(), token.end(), text[match.end() : token.start()])
        if not braced and (depth < 0 or (depth == 0 and (mark in _CLOSE_MATH or mark == "$" or mark.isspace()))):
            return Box(match.start(), token.start(), text[match.end() : token.start()])
    return None if braced or depth else Box(match.start(), len(text), text[match.end() :])
