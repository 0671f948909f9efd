"""Numbers as people write answers: grouped digits, signs, currency, units, a trailing period; compared exactly.

Text is hostile: lengths are limited before anything is converted, so that no input is slow, and nothing
raises.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_SPAN = 300
MAX_DIGITS = 40

# Spaces at which no line breaks, as text and as TeX: between digits they group thousands.
GAP = r"(?:\\[,;:> ]|~|[\u00a0\u2007-\u200a\u202f\u2060])"
# Any script's digits, superscripts and vulgar fractions, so that those are refused whole and not read in part.
_DIGIT = r"[\d\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089\u00bc-\u00be\u2150-\u215e\u2189]"
# Takes in more than is a number (exponents, times, sums, identifiers): what joins digits makes them one run, and a run
# is a number or is none. The tail of `2^{10}`, `3:45`, `1000-500` or `CO2` is no number of its own.
_JOINS = r"[-+*/\u00d7\u00b7\u00f7\u2044^.,:'\u2019\u060c\u066b\u066c\uff0c\uff0e_(){}A-Za-z]"
_RUN = re.compile(rf"(?:[A-Za-z]+[-+^_{{]*|[-+])?\.?{_DIGIT}+(?:{_JOINS}+{_DIGIT}+)*")
_PLAIN = re.compile(r"[-+]?(?:[0-9]*\.?[0-9]+|[0-9]+/[0-9]+)")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_EXPONENT = re.compile(r"[-+]?[0-9.,]+[eE][-+]?[0-9]+")
_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
# Applied in this order before runs are looked for.
_REWRITTEN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{\s*,\s*\}", ","),
        (r"\\!", ""),
        (rf"(?<=[0-9])(?:{GAP}|['\u2019])(?=[0-9])", ","),
        (r"(?<![0-9])([0-9]{1,3}) (?=[0-9]{3}(?![0-9]))", r"\1_"),
        (r"\\(?=[$%#&_{}])", ""),
        (r"[\u2012\u2013\u2212\ufe63\uff0d]", "-"),
        (r"(?<=[0-9])\s*(?=\\[dtc]?frac)|(?<=[0-9])[ \t]+(?=[0-9]+/[0-9])", "+"),
        (_FRACTION, r"\1\2/\3\4"),
        (r"\\(?:times|cdot|div)(?![A-Za-z])", "*"),
        (r"\\[A-Za-z]+|\\", " "),
        (r"\b(?:USD|EUR|GBP|INR|CAD|AUD|Rs)\.?(?=[0-9.])|(?<=[0-9A-Za-z])[$\u20ac\u00a3]+", " "),
        (r"[$\u20ac\u00a3]+", ""),
        (r"(?<=[0-9)}])(?:[ \t]+([-+])[ \t]+|[ \t]*([*/\u00d7\u00b7\u00f7^])[ \t]*)(?=[0-9({])", r"\1\2"),
    )
]


@dataclass(frozen=True)
class Number:
    """The outcome of reading a number: its exact value or None, its text, the reason for None."""

    value: Fraction | None
    text: str
    reason: str


def read_number(text: str) -> Number:
    """Reads the one number in a short text such as `$1,000.`, `70{,}000`, `-3 apples` or `3/4`.

    Thousands are grouped by commas, by spaces at which no line breaks (U+00A0, U+2009, U+202F, `\\,`, `~` and their
    like) or by apostrophes. More than one number is ambiguous and therefore none: `71 72`, `5:30` and `2 1/2` are
    refused, as are `nan`, `inf`, `1e9`, digits of other scripts, commas that do not group thousands, and more than
    MAX_DIGITS digits. A number that letters lead to (`CO2`, `x5`) is a name.
    """
    if len(text) > MAX_SPAN:
        return Number(None, "", f"the answer has more than {MAX_SPAN} characters")
    if any(char.isnumeric() and not char.isascii() for char in text):
        return Number(None, "", "the answer has digits that are not ASCII")
    runs = _runs(re.sub(r"^\s*([-+])\s+", r"\1", _rewritten(text)))
    if len(runs) != 1:
        return Number(None, "", f"expected one number, found {len(runs)}")
    return _convert(runs[0])


def last_number(text: str) -> Number:
    """Reads the last number in a text, looking at its last MAX_SPAN characters only.

    What joins digits (`12{,}500`, `3/500`, `2^{10}`, `1000-500`, `3:45`) joins numbers: the tail of one is not read,
    nor is that of `12 500`, which may be one number or two.
    """
    tail = text[-MAX_SPAN:]
    if len(text) > MAX_SPAN:
        # The first word of the tail may be the end of a longer number.
        _, *rest = re.split(r"(?<!\\)[ \t\r\n]", tail, maxsplit=1)
        tail = "".join(rest)
    runs = _runs(_rewritten(tail))
    return _convert(runs[-1]) if runs else Number(None, "", "the text holds no number")


def same_number(left: Fraction | None, right: Fraction | None) -> bool:
    """Returns whether both are numbers and equal, exactly."""
    return left is not None and right is not None and left == right


def _rewritten(text: str) -> str:
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _runs(text: str) -> list[str]:
    """Returns what may be numbers: runs of joined digits that no letters lead to."""
    return [run for run in _RUN.findall(text) if not run[0].isalpha()]


def _convert(text: str) -> Number:
    if sum(char.isdigit() for char in text) > MAX_DIGITS:
        return Number(None, "", f"the number has more than {MAX_DIGITS} digits")
    if any(char.isnumeric() and not char.isascii() for char in text):
        return Number(None, text, "the answer has digits that are not ASCII")
    if _PLAIN.fullmatch(text) or _GROUPED.fullmatch(text):
        return _exact(text)
    if _EXPONENT.fullmatch(text):
        return Number(None, text, "exponents are not read")
    if re.fullmatch(r"[-+]?[0-9][0-9,]*,[0-9,]*[0-9]", text):
        return Number(None, text, "the commas do not group thousands")
    if re.fullmatch(r"[-+]?[0-9.,/]+", text):
        return Number(None, text, f"{text!r} is not a number")
    return Number(None, text, f"expected one number, found {len(re.findall('[0-9]+', text))}")


def _exact(text: str) -> Number:
    try:
        return Number(Fraction(text.replace(",", "")), text, "")
    except ZeroDivisionError:
        return Number(None, text, "division by zero")
