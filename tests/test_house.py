"""The rules of the house, read off the syntax trees of all rooms: short functions, few parameters, short files."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("analysis", "configs", "data", "infer", "launch", "model", "rl", "settings", "store", "train")
MOST_LINES, MOST_PARAMETERS, MOST_FILE_LINES = 60, 8, 400

# Functions whose parameters are the published interface, with the most that each may have.
ALLOWED_PARAMETERS = {
    "infer/sampler.py:generate": 10,
    "model/lm.py:Model.apply": 14,
    "rl/objectives.py:policy_loss": 23,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def functions_in(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below a node with its qualified name."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, Function | ast.ClassDef)
        name = f"{prefix}{child.name}" if named else prefix  # type: ignore[attr-defined]
        if isinstance(child, Function):
            yield name, child
        yield from functions_in(child, f"{name}." if named else prefix)


@functools.cache
def functions() -> dict[str, Function]:
    """Every function of all rooms by path and qualified name."""
    trees = {path: ast.parse(path.read_text()) for path in files()}
    return {f"{p.relative_to(ROOT)}:{name}": node for p, tree in trees.items() for name, node in functions_in(tree)}


def parameters(node: Function) -> int:
    """How many parameters a function has; `self` and `cls` do not count, `*args` and `**kwargs` count as one each."""
    own = node.args
    names = [argument.arg for argument in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names) + bool(own.vararg) + bool(own.kwarg)


def lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_have_few_parameters() -> None:
    allowed = dict.fromkeys(functions(), MOST_PARAMETERS) | ALLOWED_PARAMETERS
    wrong = {name: parameters(node) for name, node in functions().items() if parameters(node) > allowed[name]}
    assert not wrong, f"more than {MOST_PARAMETERS} parameters: group them in a frozen dataclass"


def test_functions_are_short() -> None:
    wrong = {name: lines(node) for name, node in functions().items() if lines(node) > MOST_LINES}
    assert not wrong, f"more than {MOST_LINES} lines: two thoughts"


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert len(sizes) > 100
    assert not {path: size for path, size in sizes.items() if size > MOST_FILE_LINES}


@pytest.mark.parametrize("name", ALLOWED_PARAMETERS)
def test_exceptions_exist(name: str) -> None:
    assert name in functions()


def test_the_walk_finds_what_it_should() -> None:
    source = "class A:\n    def f(self, a, /, b, *c, d=1, **e):\n        def g(): pass\n"
    found = dict(functions_in(ast.parse(source)))
    assert {name: (parameters(node), lines(node)) for name, node in found.items()} == {"A.f": (5, 2), "A.f.g": (0, 1)}
