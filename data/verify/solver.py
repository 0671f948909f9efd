"""An exact solver for "make the target from these numbers", over `fractions.Fraction`.

It meets in the middle: every value that each half of the numbers can make is tabulated once, and the target
is looked up by inverting the last operation. Four numbers take about a hundred look-ups.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import NamedTuple

Values = tuple[int, ...]
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}


class Term(NamedTuple):
    """An expression and how tightly it binds: 1 sums, 2 products, 3 single numbers."""

    text: str
    strength: int


def solve(values: Values, target: int) -> str | None:
    """Returns an expression of all the values, each once, that makes a positive target, or None."""
    if len(values) == 1:
        return str(values[0]) if values[0] == target else None
    solution = next(_solutions(tuple(sorted(values)), Fraction(target)), None)
    return None if solution is None else solution.text


@cache
def reachable(values: Values) -> dict[Fraction, Term]:
    """Returns every value that sorted `values`, each used once, can make, with one expression for each."""
    if len(values) == 1:
        return {Fraction(values[0]): Term(str(values[0]), 3)}
    table: dict[Fraction, Term] = {}
    for left, right in partitions(values):
        for x, a in reachable(left).items():
            for y, b in reachable(right).items():
                for value, term in _results(x, a, y, b):
                    table.setdefault(value, term)
    return table


def partitions(values: Values) -> list[tuple[Values, Values]]:
    """Returns the distinct ways to divide sorted values into two non-empty groups, the smaller first."""
    chosen = [group for size in range(1, len(values) // 2 + 1) for group in combinations(range(len(values)), size)]
    pairs = [
        (tuple(values[i] for i in group), tuple(v for i, v in enumerate(values) if i not in group)) for group in chosen
    ]
    return sorted(set(pairs), key=lambda pair: (len(pair[0]), pair))


def join(left: Term, operator: str, right: Term) -> Term:
    """Returns the expression `left operator right` with the parentheses it needs and no others."""
    strength = _STRENGTH[operator]
    first = left.text if left.strength >= strength else f"({left.text})"
    # The right side of - and / needs parentheses at equal strength too: 8-(3-2), 8/(4/2).
    tight = right.strength > strength or (right.strength == strength and operator in "+*")
    return Term(f"{first}{operator}{right.text if tight else f'({right.text})'}", strength)


def _results(x: Fraction, a: Term, y: Fraction, b: Term) -> Iterator[tuple[Fraction, Term]]:
    yield x + y, join(a, "+", b)
    yield x - y, join(a, "-", b)
    yield y - x, join(b, "-", a)
    yield x * y, join(a, "*", b)
    if y:
        yield x / y, join(a, "/", b)
    if x:
        yield y / x, join(b, "/", a)


def _solutions(values: Values, target: Fraction) -> Iterator[Term]:
    for left, right in partitions(values):
        table = reachable(right)
        for x, a in reachable(left).items():
            for y, operator, swapped in _partners(x, target):
                if y in table:
                    yield join(table[y], operator, a) if swapped else join(a, operator, table[y])


def _partners(x: Fraction, target: Fraction) -> Iterator[tuple[Fraction, str, bool]]:
    """Yields (y, operator, swapped) where `x operator y` (`y operator x` if swapped) is the target."""
    yield target - x, "+", False
    yield x - target, "-", False
    yield target + x, "-", True
    if x:
        yield target / x, "*", False
        yield x / target, "/", False
        yield target * x, "/", True
