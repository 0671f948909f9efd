"""Countdown by search: thoughts that walk a search tree, with wrong turns or without (journey learning, 2410.18982)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from data.chat import THINK_CLOSE, THINK_OPEN
from data.sources.examples import Example
from data.tasks.base import stable_hash
from data.tasks.countdown import Countdown
from data.verify.solver import Term, join

State = tuple[tuple[Fraction, Term], ...]  # the numbers that are left, each with the expression that made it


@dataclass(frozen=True)
class Journeys(Countdown):
    """Questions of `countdown`; the demonstration thinks in steps, each of which joins two numbers: `3+4=7;7*2=14`.

    The steps are a depth-first walk of the search tree: at every node at most `wrong_turns` steps are tried that lead
    nowhere, each ending in `x` where it is given up; then one that leads to the target. `wrong_turns=0` is the shortcut
    of the same trees. What follows the thought is the expression.
    """

    min_numbers: int = 3
    max_numbers: int = 3
    wrong_turns: int = 2

    alphabet = "0123456789+-*/()=,:;x"

    def __post_init__(self) -> None:
        super().__post_init__()
        # With four numbers a target may need a fraction on its way, which no step writes.
        if not 0 <= self.wrong_turns <= 8 or self.max_numbers > 3:
            raise ValueError(
                f"wrong_turns lies in 0..8 and max_numbers is at most 3, got {self.wrong_turns}, {self.max_numbers}"
            )

    def target(self, example: Example) -> str:
        """Returns the walk in a thought, and the expression that it ends in."""
        draw = random.Random(stable_hash("journeys", self.seed, str(example["numbers"]), example["target"]))
        start = tuple((Fraction(number), Term(str(number), 3)) for number in example["numbers"])
        steps, expression = self._walk(start, Fraction(example["target"]), draw)
        return f"{THINK_OPEN}{';'.join(steps)}{THINK_CLOSE}{expression}"

    def _walk(self, state: State, target: Fraction, draw: random.Random) -> tuple[list[str], str]:
        """The steps from a state that can reach the target, wrong turns among them, and the expression."""
        if len(state) == 1:
            return [], state[0][1].text
        moves = list(_moves(state))
        draw.shuffle(moves)
        good = next(move for move in moves if _reaches(move[1], target))
        wrong = [move for move in moves if not _reaches(move[1], target)][: draw.randint(0, self.wrong_turns)]
        steps = [step for move in wrong for step in _dead_end(*move, draw)]
        rest, expression = self._walk(good[1], target, draw)
        return [*steps, good[0], *rest], expression


def _dead_end(step: str, state: State, draw: random.Random) -> list[str]:
    """A wrong turn: its step, and what follows it down to one number, marked as given up."""
    steps = [step]
    while len(state) > 1:
        following, state = draw.choice(list(_moves(state)))
        steps.append(following)
    return [*steps[:-1], f"{steps[-1]}x"]


def _reaches(state: State, target: Fraction) -> bool:
    """Whether the numbers that are left can make the target."""
    if len(state) == 1:
        return state[0][0] == target
    return any(_reaches(after, target) for _, after in _moves(state))


def _moves(state: State) -> Iterator[tuple[str, State]]:
    """Every way to join two of the numbers into a whole one from 0 on: the step as text, and what is left."""
    for i, (x, a) in enumerate(state):
        for j, (y, b) in enumerate(state):
            if i == j:
                continue
            left = tuple(number for n, number in enumerate(state) if n not in (i, j))
            for operator, value in (("+", x + y), ("-", x - y), ("*", x * y), ("/", x / y if y else Fraction(-1))):
                if (operator in "+*" and i > j) or value < 0 or value.denominator != 1:
                    continue
                yield f"{x}{operator}{y}={value}", (*left, (value, join(a, operator, b)))
