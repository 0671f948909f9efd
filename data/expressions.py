"""Integer expressions of one variable: drawn, changed in one place, written as Python, evaluated over arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# What two operands are joined by; `if` has three: a limit, the value where x is at most that, the value elsewhere.
OPERATIONS = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "//": np.floor_divide,
    "%": np.remainder,
    "min": np.minimum,
    "max": np.maximum,
}
DIVISIONS = ("//", "%")
LARGEST = 9  # constants are drawn from 1 to this
VARIABLES = 0.6  # the share of the leaves that are x


class Call(NamedTuple):
    """An operation and its operands."""

    name: str
    operands: tuple[Expression, ...]


Expression = int | str | Call  # a constant, "x", or an operation


def choose(limit: int, below: Expression, above: Expression) -> Expression:
    """Returns the expression that is `below` where x is at most `limit`, and `above` elsewhere."""
    return Call("if", (limit, below, above))


def draw(rng: np.random.Generator, depth: int) -> Expression:
    """Returns a full tree of that depth over x and constants; of depth 0 a leaf."""
    if depth == 0:
        return "x" if rng.random() < VARIABLES else int(rng.integers(1, LARGEST + 1))
    return Call(str(rng.choice(list(OPERATIONS))), (draw(rng, depth - 1), draw(rng, depth - 1)))


def size(expression: Expression) -> int:
    """Returns how many leaves and operations there are."""
    return 1 + sum(map(size, expression.operands)) if isinstance(expression, Call) else 1


def change(rng: np.random.Generator, expression: Expression) -> Expression:
    """Returns the expression with one leaf or operation, each as likely, replaced by another one; none of an `if`."""
    return _change(rng, expression, int(rng.integers(size(expression))))


def _change(rng: np.random.Generator, expression: Expression, at: int) -> Expression:
    """The place `at` counts from the root, operations before their operands."""
    if not isinstance(expression, Call):
        leaves = [leaf for leaf in ("x", *range(1, LARGEST + 1)) if leaf != expression]
        return leaves[int(rng.integers(len(leaves)))]
    if at == 0:
        others = [name for name in OPERATIONS if name != expression.name]
        return expression._replace(name=str(rng.choice(others)))
    operands, at = list(expression.operands), at - 1
    for number, operand in enumerate(operands):
        if at < size(operand):
            operands[number] = _change(rng, operand, at)
            break
        at -= size(operand)
    return expression._replace(operands=tuple(operands))


def evaluate(expression: Expression, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values [N] at x [N] int64, and where there is one [N] bool: not where it divides by zero.

    Division rounds down, as Python's does; beyond 64 bits values wrap around. Of an `if` only the part that is chosen
    can fail.
    """
    everywhere = np.ones(x.shape, bool)
    if expression == "x":
        return x, everywhere
    if not isinstance(expression, Call):
        return np.full_like(x, int(expression)), everywhere
    found = [evaluate(operand, x) for operand in expression.operands]
    if expression.name == "if":
        (limit, _), (below, below_is), (above, above_is) = found
        return np.where(x <= limit, below, above), np.where(x <= limit, below_is, above_is)
    (a, a_is), (b, b_is) = found
    exists = a_is & b_is
    if expression.name in DIVISIONS:
        exists, b = exists & (b != 0), np.where(b == 0, 1, b)
    with np.errstate(over="ignore"):
        return OPERATIONS[expression.name](a, b), exists


def text(expression: Expression) -> str:
    """Returns the expression in Python, which has the same values as long as they fit into 64 bits."""
    if not isinstance(expression, Call):
        return str(expression)
    parts = [text(operand) for operand in expression.operands]
    if expression.name == "if":
        return f"({parts[1]} if x <= {parts[0]} else {parts[2]})"
    if expression.name in ("min", "max"):
        return f"{expression.name}({', '.join(parts)})"
    return f"({parts[0]} {expression.name} {parts[1]})"
