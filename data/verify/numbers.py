"""Numbers as people write answers: commas, signs, currency, units, a trailing period; compared exactly.

Text is hostile: lengths are limited before anything is converted, so that no input is slow, and nothing
raises.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_SPAN = 300
MAX_DIGITS = 40

# Takes in more than is a number (exponents, dotted sequences), so that those are refused whole and not read
# in part.
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:/[0-9]+)?")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_CURRENCY = str.maketrans({"$": None, "€": None, "£": None, "\\": None, "\u2212": "-"})


@dataclass(frozen=True)
class Number:
    """The outcome of reading a number: its exact value or None, its text, the reason for None."""

    value: Fraction | None
    text: str
    reason: str


def read_number(text: str) -> Number:
    """Reads the one number in a short text such as `$1,000.`, `-3 apples` or `3/4`.

    More than one number is ambiguous and therefore none: `71 72` and `5:30` are refused, as are `nan`, `inf`,
    `1e9`, digits of other scripts, commas that do not group thousands, and more than MAX_DIGITS digits.
    """
    if len(text) > MAX_SPAN:
        return Number(None, "", f"the answer has more than {MAX_SPAN} characters")
    if any(char.isnumeric() and not char.isascii() for char in text):
        return Number(None, "", "the answer has digits that are not ASCII")
    found = _NUMBER.findall(text.translate(_CURRENCY))
    if len(found) != 1:
        return Number(None, "", f"expected one number, found {len(found)}")
    return _convert(found[0])


def last_number(text: str) -> Number:
    """Reads the last number in a text, looking at its last MAX_SPAN characters only."""
    tail = text[-MAX_SPAN:]
    if len(text) > MAX_SPAN:
        # The first word of the tail may be the end of a longer number.
        tail = re.split(r"\s", tail, maxsplit=1)[-1] if re.search(r"\s", tail) else ""
    found = _NUMBER.findall(tail.translate(_CURRENCY))
    return _convert(found[-1]) if found else Number(None, "", "the text holds no number")


def same_number(left: Fraction | None, right: Fraction | None) -> bool:
    """Returns whether both are numbers and equal, exactly."""
    return left is not None and right is not None and left == right


def _convert(token: str) -> Number:
    text = token.rstrip(",")
    if sum(char.isdigit() for char in text) > MAX_DIGITS:
        return Number(None, "", f"the number has more than {MAX_DIGITS} digits")
    if "e" in text or "E" in text:
        return Number(None, text, "exponents are not read")
    if "," in text and not _GROUPED.fullmatch(text):
        return Number(None, text, "the commas do not group thousands")
    try:
        return Number(Fraction(text.replace(",", "")), text, "")
    except ZeroDivisionError:
        return Number(None, text, "division by zero")
    except ValueError:
        return Number(None, text, f"{text!r} is not a number")
