"""A second look at numbers that math-verify calls equal; for workers only.

Its tolerances are absolute, six decimals and fifteen, so that all tiny numbers are equal to it. Here numbers are
compared exactly where both are exact, and relatively where one is a decimal, which may be a rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

# Half a unit in the sixth significant digit, at its largest: for a decimal beside a fraction or an irrational number.
RELATIVE = Fraction(5, 10**6)
# For a decimal beside a decimal, which floating point may have written.
NOISE = Fraction(1, 10**9)
# A decimal of at least so many decimals and significant digits may be the other number rounded to its decimals.
LEAST_DECIMALS = 6
LEAST_DIGITS = 4
# Nobody writes more; irrational numbers have more when they are written with DIGITS significant binary digits.
MOST_DECIMALS = 100
DIGITS = 60
# To tell two exact numbers apart.
MOST_DIGITS = 300


@contextmanager
def relatively() -> Iterator[None]:
    """Makes math-verify's comparison of two numbers, in whatever they stand, exact or relative within the context.

    Nor are two equations equal within it because neither has a solution.
    """
    from math_verify import grader

    equal, solve = grader.sympy_numeric_eq, grader.solve

    def compare(gold: Any, answer: Any, float_rounding: int, numeric_precision: int) -> bool:
        return bool(equal(gold, answer, float_rounding, numeric_precision)) and same_value(gold, answer)

    def solutions(equation: Any, variables: Any) -> Any:
        roots = solve(equation, variables)
        if not roots:
            raise ValueError("no solutions: two equations without any would be equal")
        return roots

    grader.sympy_numeric_eq, grader.solve = compare, solutions
    try:
        yield
    finally:
        grader.sympy_numeric_eq, grader.solve = equal, solve


def right_side(expression: Any) -> Any:
    """Returns the right side of an equation between numbers, which holds whatever it is, and anything else as it is."""
    from sympy import Eq

    return expression.rhs if isinstance(expression, Eq) and not expression.free_symbols else expression


def same_value(gold: Any, answer: Any) -> bool:
    """Returns whether two sympy expressions have one value, at a point where they hold variables.

    Without variables a decimal may stand for a number that it rounds, see `rounds_to`.
    """
    from math_verify.grader import get_pct_val
    from sympy import Float, Integer, MatrixBase

    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return True  # the comparison has come here for each of their elements
    if all(isinstance(get_pct_val(side, side), Integer) for side in (gold, answer)):
        return True  # math-verify has compared them exactly, or without their per cent signs
    decimal = bool(gold.atoms(Float) | answer.atoms(Float))
    variables = sorted(gold.free_symbols | answer.free_symbols, key=str)
    gold, answer = (_exact(side, variables) for side in (gold, answer))
    if not decimal or variables:
        return _vanishes(gold - answer)
    return all(rounds_to(x, y) for x, y in zip(_parts(gold), _parts(answer), strict=True))


def rounds_to(gold: Fraction, answer: Fraction) -> bool:
    """Returns whether two numbers, one of them a decimal, agree to RELATIVE (two decimals: NOISE), or one is the other
    rounded.

    The latter holds for a number of at least LEAST_DECIMALS decimals and LEAST_DIGITS significant digits.
    """
    decimals = [_decimals(side) for side in (gold, answer)]
    difference, scale = abs(gold - answer), RELATIVE if None in decimals else NOISE
    halves = [_half_unit(side, places) for side, places in zip((gold, answer), decimals, strict=True)]
    return difference <= scale * abs(gold) or difference <= max(halves)


def _decimals(number: Fraction) -> int | None:
    """How many decimals a number has, or None where they are more than MOST_DECIMALS or do not end."""
    rest, places = number.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0 and count <= MOST_DECIMALS:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    return places if rest == 1 and places <= MOST_DECIMALS else None


def _half_unit(number: Fraction, decimals: int | None) -> Fraction:
    """As much as rounding to its decimals can have changed a number; 0 where these or its digits are too few."""
    if decimals is None or decimals < LEAST_DECIMALS or abs(number) * 10**decimals < 10 ** (LEAST_DIGITS - 1):
        return Fraction(0)
    return Fraction(1, 2 * 10**decimals)


def _exact(expression: Any, variables: list[Any]) -> Any:
    """The expression with its decimals as fractions and with a fraction for each variable."""
    from sympy import Float, Rational

    values = {variable: Rational(7 + 3 * place, 5) for place, variable in enumerate(variables)}
    decimals = {number: Rational(str(number)) for number in expression.atoms(Float)}
    return expression.xreplace(decimals | values).doit()


def _vanishes(difference: Any) -> bool:
    """Whether a number is 0, or cannot be told from it by MOST_DIGITS digits."""
    from sympy import Float

    parts = [part.evalf(15, maxn=MOST_DIGITS) for part in difference.as_real_imag()]
    return all(part == 0 or (isinstance(part, Float) and not part.is_comparable) for part in parts)


def _parts(number: Any) -> list[Fraction]:
    """The real and the imaginary part, exactly or to DIGITS digits."""
    from sympy import Rational

    parts = [part if part.is_Rational else part.evalf(DIGITS) for part in number.as_real_imag()]
    exact = [Rational(part) if part.is_comparable else Rational(0) for part in parts]
    return [Fraction(part.p, part.q) for part in exact]
