"""Exact values of arithmetic expressions written by a model.

A recursive-descent parser over `fractions.Fraction`: integers, `+ - * /` (also `×` and `÷`), unary minus and
parentheses, and nothing else. Text is never evaluated as code. Length, number of nodes, depth and digits are
limited, so that every call is quick; whatever is wrong becomes a reason, never an exception.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction

MAX_CHARS = 400
MAX_NODES = 64
MAX_DEPTH = 24
MAX_DIGITS = 12

# ASCII digits only: `\d` would also take other scripts' digits.
_TOKEN = re.compile(r"[ \t\r\n]*(?:([0-9]+)|([-+*/×÷()]))")
_FORBIDDEN = {"**": "'**' (powers) is not allowed", "//": "'//' (whole division) is not allowed"}
_SAME = {"×": "*", "÷": "/"}


@dataclass(frozen=True)
class Arithmetic:
    """The outcome: `value` or None, the integer literals in order, `reason` (empty when fine)."""

    value: Fraction | None
    numbers: tuple[int, ...]
    reason: str


class _Fault(Exception):
    """What is wrong with an expression; it never leaves this module."""


def evaluate(text: str) -> Arithmetic:
    """Returns the exact value of the expression before the first `=`, or the reason it has none."""
    expression = cut_equals(text)
    numbers: tuple[int, ...] = ()
    try:
        tokens = _tokens(expression)
        numbers = tuple(int(token) for token in tokens if token.isdigit())
        return Arithmetic(_Parser(tokens).parse(), numbers, "")
    except _Fault as fault:
        return Arithmetic(None, numbers, str(fault))


def cut_equals(text: str) -> str:
    """Returns the text before the first `=`, stripped."""
    return text.partition("=")[0].strip(" \t\r\n")


def _tokens(text: str) -> list[str]:
    _check_text(text)
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Fault(f"{text[position:].lstrip()[:1]!r} is not part of an expression")
        tokens.append(_literal(match[1]) if match[1] else _SAME.get(match[2], match[2]))
        position = match.end()
    return tokens


def _check_text(text: str) -> None:
    if not text:
        raise _Fault("the expression is empty")
    if len(text) > MAX_CHARS:
        raise _Fault(f"the expression has more than {MAX_CHARS} characters")
    for operator, reason in _FORBIDDEN.items():
        if operator in text:
            raise _Fault(reason)


def _literal(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        raise _Fault(f"a number has more than {MAX_DIGITS} digits")
    if len(digits) > 1 and digits[0] == "0":
        raise _Fault(f"{digits!r} begins with a zero")
    return digits


@dataclass
class _Parser:
    """sum := term (('+'|'-') term)*; term := unary (('*'|'/') unary)*; unary := '-' unary | '(' sum ')' |
    integer.
    """

    tokens: list[str]
    position: int = field(default=0, init=False)
    nodes: int = field(default=0, init=False)

    def parse(self) -> Fraction:
        value = self._sum(0)
        if self.position < len(self.tokens):
            raise _Fault(f"expected an operator or the end, found {self.tokens[self.position]!r}")
        return value

    def _sum(self, depth: int) -> Fraction:
        value = self._term(depth)
        while (operator := self._peek()) in ("+", "-"):
            self._advance()
            right = self._term(depth)
            value = value + right if operator == "+" else value - right
        return value

    def _term(self, depth: int) -> Fraction:
        value = self._unary(depth)
        while (operator := self._peek()) in ("*", "/"):
            self._advance()
            right = self._unary(depth)
            value = value * right if operator == "*" else _divide(value, right)
        return value

    def _unary(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise _Fault(f"the expression is nested more than {MAX_DEPTH} deep")
        token = self._advance()
        if token == "-":
            return -self._unary(depth + 1)
        if token == "(":
            return self._closed(self._sum(depth + 1))
        if token.isdigit():
            return Fraction(int(token))
        raise _Fault(f"expected a number, found {token!r}" if token else "the expression ends too early")

    def _closed(self, value: Fraction) -> Fraction:
        token = self._advance()
        if token != ")":
            raise _Fault(f"expected ')', found {token!r}" if token else "a ')' is missing")
        return value

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _advance(self) -> str:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Fault(f"the expression has more than {MAX_NODES} parts")
        token = self._peek()
        self.position += 1
        return token


def _divide(left: Fraction, right: Fraction) -> Fraction:
    if right == 0:
        raise _Fault("division by zero")
    return left / right
