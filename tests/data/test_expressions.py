"""Integer expressions: values are Python's, one place changes, and failures are told."""

import numpy as np
import pytest

from data.expressions import OPERATIONS, Call, Expression, change, choose, draw, evaluate, size, text

X = np.arange(-20, 21)


def python_values(expression: Expression) -> list[int | None]:
    """What Python makes of the text, which this file's own drawing wrote."""

    def value(x: int) -> int | None:
        try:
            return int(eval(text(expression), {"x": x, "min": min, "max": max}))
        except ZeroDivisionError:
            return None

    return [value(x) for x in X.tolist()]


def test_values_are_those_of_the_text_in_python() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        expression = choose(3, draw(rng, 2), draw(rng, 1))
        values, exist = evaluate(expression, X)
        assert [int(v) if e else None for v, e in zip(values, exist, strict=True)] == python_values(expression)
        seen |= {name for name in OPERATIONS if f" {name} " in text(expression) or f"{name}(" in text(expression)}
    assert seen == set(OPERATIONS), "every operation was drawn"


def test_only_the_branch_that_is_taken_can_fail() -> None:
    expression = choose(0, Call("//", (1, "x")), "x")
    values, exist = evaluate(expression, np.array([-2, 0, 5]))
    assert exist.tolist() == [True, False, True]
    assert values[[0, 2]].tolist() == [-1, 5]


def test_a_change_is_in_one_place() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        expression = draw(rng, 3)
        other = change(rng, expression)
        assert size(expression) == size(other) == 15
        assert differences(expression, other) == 1


def differences(one: Expression, other: Expression) -> int:
    if not (isinstance(one, Call) and isinstance(other, Call)):
        return int(one != other)
    below = sum(differences(a, b) for a, b in zip(one.operands, other.operands, strict=True))
    return int(one.name != other.name) + below


@pytest.mark.parametrize(
    ("expression", "written"), [(choose(2, Call("min", ("x", 3)), 4), "(min(x, 3) if x <= 2 else 4)")]
)
def test_text(expression: Expression, written: str) -> None:
    assert text(expression) == written
