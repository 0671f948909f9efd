"""Countdown: reach a target with given numbers, each used exactly once, by + - * / and parentheses."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from data.chat import after_thinking
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash
from data.verify.arithmetic import evaluate
from data.verify.solver import Term, join

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Countdown:
    """Prompt `3,7,2:13=`, answer an expression such as `2*3+7` that uses every number exactly once.

    Each example has `min_numbers`..`max_numbers` numbers from 1..`largest` and a target in 1..`max_target`
    that is reached by construction; `expression` is the construction. A collection of numbers belongs to one
    split whatever the seed and the target.
    """

    min_numbers: int = 3
    max_numbers: int = 4
    largest: int = 9
    max_target: int = 99
    seed: int = 0
    train_size: int = 200_000
    valid_size: int = 1000
    test_size: int = 2000

    alphabet = "0123456789+-*/()=,:"
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 2 <= self.min_numbers <= self.max_numbers <= 8:
            raise ValueError(f"2 <= min_numbers <= max_numbers <= 8, got {self.min_numbers} and {self.max_numbers}")
        if self.largest < 2 or self.max_target < 9:
            raise ValueError(f"largest >= 2 and max_target >= 9, got {self.largest} and {self.max_target}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"numbers", "target", "expression"}`, made on demand."""
        check_split("countdown", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the numbers, a colon, the target and an equals sign."""
        return f"{','.join(map(str, example['numbers']))}:{example['target']}="

    def target(self, example: Example) -> str:
        """Returns the expression by which the example was built."""
        return str(example["expression"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text after the last `</think>` makes the target, each number used once."""
        answer = after_thinking(text)
        result = evaluate(answer)
        parsed = answer[:200].strip()
        if Counter(result.numbers) != Counter(example["numbers"]):
            return Verdict(0.0, parsed, result.reason or f"uses {list(result.numbers)}, not {list(example['numbers'])}")
        if result.value is None:
            return Verdict(0.0, parsed, result.reason)
        right = result.value == example["target"]
        return Verdict(float(right), parsed, "correct" if right else "the value is not the target")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("countdown", self.seed, split, index))
        while True:
            numbers = [draw.randint(1, self.largest) for _ in range(draw.randint(self.min_numbers, self.max_numbers))]
            if hashed_split(str(sorted(numbers)), SHARES) != split:
                continue
            value, expression = _build(numbers, draw)
            if value.denominator == 1 and 1 <= value <= self.max_target:
                return {"numbers": numbers, "target": int(value), "expression": expression}


def _build(numbers: Sequence[int], draw: random.Random) -> tuple[Fraction, str]:
    """Joins random pairs until one expression is left."""
    pool = [(Fraction(number), Term(str(number), 3)) for number in numbers]
    while len(pool) > 1:
        x, a = pool.pop(draw.randrange(len(pool)))
        y, b = pool.pop(draw.randrange(len(pool)))
        operator = draw.choice("+-*/" if y else "+-*")
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[operator]
        pool.append((value, join(a, operator, b)))
    return pool[0][0], pool[0][1].text
