"""Inputs like the one that a test gives, made by a rule: programs are told apart by what they answer to them."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]
CHANGED = 0.3  # of the numbers and words of a text
_WORDS = re.compile(r"[0-9]+|[A-Za-z]+")


def parse(code: str) -> ast.Module:
    """Returns the syntax tree, without the warnings that old code earns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


def first_call(test: str, names: Sequence[str]) -> tuple[str, Arguments] | None:
    """The function and the arguments of the first assertion in a test, `assert f(...) == ...`; nothing is run.

    Named arguments are taken in their order. None where the assertion calls none of `names`, or several times, or where
    the arguments are no literals.
    """
    assertion = next((node for node in ast.walk(parse(test)) if isinstance(node, ast.Assert)), None)
    calls = [] if assertion is None else [node for node in ast.walk(assertion) if isinstance(node, ast.Call)]
    own = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]
    if len(own) != 1:
        return None
    given = [*own[0].args, *(keyword.value for keyword in own[0].keywords)]
    try:
        return own[0].func.id, tuple(ast.literal_eval(each) for each in given)  # type: ignore[attr-defined]
    except ValueError:
        return None


def arguments_like(rng: np.random.Generator, shown: Arguments, count: int) -> list[Arguments]:
    """So many lists of arguments, each part of the shown ones changed a little or not: some break what is meant."""
    return [tuple(_like(rng, value) for value in shown) for _ in range(count)]


def _like(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value + int(rng.integers(-3, 4))
    if isinstance(value, float):
        return round(value + float(rng.normal()), 2)
    if isinstance(value, str):
        letters = list(value)
        return "".join(rng.permutation(letters)[: rng.integers(len(letters) + 1)]) if rng.random() < 0.5 else value
    if isinstance(value, list | tuple):
        items = [_like(rng, item) for item in value]
        order = rng.permutation(len(items)) if rng.random() < 0.3 else range(len(items))
        kept = [items[i] for i in order][: len(items) - int(rng.random() < 0.2)]
        return type(value)(kept)
    return value


def texts_like(rng: np.random.Generator, shown: str, count: int) -> list[str]:
    """So many texts for standard input: some numbers are another one of as many digits, some words in another order."""

    def changed(word: re.Match[str]) -> str:
        if rng.random() >= CHANGED:
            return word[0]
        if not word[0].isdigit():
            return "".join(rng.permutation(list(word[0])))
        digits = rng.integers(0, 10, len(word[0]))
        digits[0] = rng.integers(1, 10)
        return "".join(map(str, digits))

    return [_WORDS.sub(changed, shown) for _ in range(count)]
