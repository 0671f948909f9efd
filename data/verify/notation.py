"""Notations of mathematical answers that mean the same: made uniform, or read without a parser; linear time."""

import re
from fractions import Fraction

from data.verify.extract import tidy
from data.verify.numbers import GAP

_REWRITTEN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Blanks that the parser does not know, and the digits they group; `2^3\,125` is a product.
        (rf"(?<![0-9.,^_A-Za-z])[0-9]{{1,3}}(?:(?:{GAP}|[ ])[0-9]{{3}})+(?![0-9])", ""),
        (r"[~\u200b\u2060\ufeff]|\s", " "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\([dtc]?frac)\s+([0-9])\s*([0-9])(?![0-9])", r"\\\1{\2}{\3}"),
    )
]
_GAPS = re.compile(rf"{GAP}|\s")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(am|pm)")
_NUMERAL = re.compile(r"([0-9]+[0-9A-Za-z]*)_(?:\{([0-9]+)\}|([0-9]+))")
_SCIENTIFIC = re.compile(r"([-+]?[0-9]*\.?[0-9]+)(?:\\(?:times|cdot)10\^(?:\{([-+]?[0-9]{1,4})\}|([0-9])))?")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textrm|textit)\s*\{([^{}]*)\}")
# In a text behind a number, which math-verify takes for a unit: another number, or what makes it another number.
_SUSPICIOUS = re.compile(
    r"(?<![A-Za-z])[0-9]|\b(?:or|not|no|isn't|either|maybe|perhaps|possibly|alternatively|hundreds?|thousands?|millions?"
    r"|billions?|trillions?|dozens?)\b",
    re.IGNORECASE,
)


_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{([^{}]*)\}|(\\?%)|\^\s*\{?\s*(\\circ)\s*\}?)\s*(?:\^\{?([23])\}?)?"
)
# Units that are told apart, each with its names; any other word is taken for one that may be left out.
_UNITS = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        "in inch inches",
        "ft foot feet",
        "yd yard yards",
        "mi mile miles",
        "g gram grams",
        "kg kilogram kilograms",
        "lb lbs pound pounds",
        "s sec second seconds",
        "min minute minutes",
        "h hr hrs hour hours",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "cent cents",
        "dollar dollars",
        "% percent",
        "circ degree degrees",
    )
    for name in names.split()
}
# What math-verify takes for a unit and drops: the last letters of `3m` and of `x + c`.
_FACTOR = re.compile(r"(?:[0-9}]|[-+*/]\s*)(?!(?:cm|mm|km|kg|ft|lb|hr|am|pm|st|nd|rd|th)\Z)[a-z]{1,2}\Z")
_LISTED = re.compile(r"[,;=<>&]|\\(?:text[a-z]*|mbox|math[a-z]*|l[et]|g[et]|[lgn]?eq|in|cup|cap|pm|begin)(?![A-Za-z])")
_WORDS = re.compile(r"\\(?:text[a-z]*|mbox|math(?:rm|bf|it))\s*\{[^{}]*\}")
_LIST_WORDS = re.compile(r"\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}")
_SPELLING = re.compile(r"\s|\\[,;:! ]|\\(?:left|right)(?![A-Za-z])|\$|(?<=\\)[dtc](?=frac)")


def uniform(answer: str) -> str:
    """Returns an answer without blanks at its ends or within grouped digits, its blanks spaces, its empty set one."""
    grouped, *others = _REWRITTEN
    answer = grouped[0].sub(lambda found: _GAPS.sub("", found[0]), tidy(answer))
    for pattern, replacement in others:
        answer = pattern.sub(replacement, answer)
    return answer


def integer(answer: str) -> tuple[bool, str] | None:
    """Returns the sign and the digits of an integer of any length, or None: Python converts 4,300 digits at most."""
    match = re.fullmatch(r"([-+]?)0*([0-9]+)", answer)
    return None if match is None else (match[1] == "-" and match[2] != "0", match[2])


def clock(answer: str) -> tuple[str, str, str] | None:
    """Returns hour, minute and half of the day of `6:00 PM`, `6:00\\text{ p.m.}` and their like, or None."""
    bare = re.sub(rf"{GAP}|[\s.(){{}}]", "", re.sub(r"\\(?:text|mbox|mathrm)(?![A-Za-z])", "", answer)).lower()
    match = _CLOCK.fullmatch(bare)
    return None if match is None else (match[1].lstrip("0"), match[2], match[3])


def numeral(answer: str) -> tuple[str, str] | None:
    """Returns digits and base of a numeral such as `204_5`, or None: math-verify does not see the base."""
    match = _NUMERAL.fullmatch(answer.replace(" ", ""))
    return None if match is None else (match[1].lstrip("0").upper(), match[2] or match[3])


def scientific(answer: str) -> Fraction | None:
    """Returns the exact value of a decimal, times a power of ten or not, or None."""
    match = _SCIENTIFIC.fullmatch(re.sub(rf"{GAP}|\s", "", answer))
    if match is None or len(answer) > 100:
        return None
    return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or 0)


def unit(answer: str) -> tuple[str, str] | None:
    """Returns the unit behind an answer (`cm`, a degree, a per cent sign) and its power, or None for one not known."""
    if answer.startswith(("$", "\\$")):
        return "dollar", ""
    *_, match = (None, *_UNIT.finditer(answer))
    if match is None or match.end() != len(answer):
        return None
    name = _UNITS.get((match[1] or match[2] or match[3]).strip(" ~.\\").lower() or "%")
    return None if name is None else (name, match[4] or "")


def grouped(gold: str, answer: str) -> tuple[str, str]:
    """Returns both in parentheses where the letter at an end is a variable: the gold's, or any where the gold has some.

    Lists, relations and answers with words stay as they are, and so does an answer to a gold without letters: `5m` may
    be five metres.
    """
    letters = re.search(r"[a-z]", re.sub(r"\\[A-Za-z]+", "", gold))
    if not letters or _LISTED.search(gold) or not (_FACTOR.search(gold) or _FACTOR.search(answer)):
        return gold, answer
    return f"({gold})", answer if _LISTED.search(answer) else f"({answer})"


def worded(answer: str) -> bool:
    """Returns whether words stand in the midst of an answer: math-verify would take all from there on for a unit."""
    answer = _LIST_WORDS.sub(",", answer)
    first = _WORDS.search(answer)
    if first is None or not answer[: first.start()].strip():
        return False
    return re.fullmatch(r"\s*(?:\^\{?[0-9]\}?)?", answer[first.end() :]) is None


def spelling(answer: str) -> str:
    """Returns an answer without what does not change how it reads: blanks, dollars, the sizes of brackets."""
    return _SPELLING.sub("", answer)


def suspicious_text(answer: str) -> str:
    """Returns the first text in an answer that holds a number, or a word that makes its number another; or nothing."""
    return next((text for text in _TEXT.findall(answer) if _SUSPICIOUS.search(text)), "")
