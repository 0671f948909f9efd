"""Sums of digits with written running sums, and slips that a further pass repairs: what waiting can be worth.

For budget forcing in miniature (s1, 2501.19393): a model of these texts errs in its first pass as often as they do, and
gains by being made to go over its sums again.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}
OPEN, CLOSE, AGAIN = "<t>", "</t>", "W"
PLACES = "abcdefghijklmnopqrs"


@dataclass(frozen=True)
class RunningSums:
    """The sum of `low` to `high` digits from 0 to `largest`, modulo 10: prompt `a3b1c4=`, answer 8.

    The demonstration writes each place, its digit and the sum so far in a thought: `<t>a33b14c48</t>8`. Such a pass is
    followed by another, after `W`, with probability `again`, up to `passes` of them. The first has a slip with
    probability `slip`: one sum is wrong, and those after it go on from there. A later pass slips `repair` times as
    often as the one before it. The answer is where the last pass ends, right or wrong. `delimiters`, and `wait` "W",
    are what budget forcing takes.
    A row of digits belongs to one split whatever the seed. `train_size`, `valid_size`, `test_size`: lengths of splits.
    """

    low: int = 4
    high: int = 5
    largest: int = 4
    passes: int = 7
    again: float = 0.3
    slip: float = 0.3
    repair: float = 0.25
    seed: int = 0
    train_size: int = 200_000
    valid_size: int = 1000
    test_size: int = 2000

    alphabet = f"0123456789=</>{AGAIN}{PLACES}t"
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= len(PLACES):
            raise ValueError(f"low and high must rise within 1..19, got {self.low} and {self.high}")
        if not 1 <= self.largest <= 9:
            raise ValueError(f"largest is a digit from 1 to 9, got {self.largest}")
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        for name in ("again", "slip", "repair"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share in [0, 1], got {getattr(self, name)}")

    @property
    def delimiters(self) -> Mapping[str, str]:
        """Returns the texts around a thought."""
        return {"start": OPEN, "stop": CLOSE, "end": CLOSE}

    def examples(self, split: str) -> Sequence[Example]:
        """Returns rows `{"digits", "passes"}`, made on demand: the digits as text, the passes as a thought has them."""
        check_split("running_sums", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns each place with its digit, and `=`."""
        return "".join(map("".join, zip(PLACES, example["digits"], strict=False))) + "="

    def target(self, example: Example) -> str:
        """Returns the thought, and the last sum of its last pass."""
        passes = example["passes"]
        return f"{OPEN}{AGAIN.join(passes)}{CLOSE}{passes[-1][-1]}"

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when what follows the last `</t>` is the sum and nothing else."""
        answer = text.rpartition(CLOSE)[2].strip(" \n\t\r")
        if len(answer) != 1 or answer not in "0123456789":
            return Verdict(0.0, None, "the answer is no single digit" if answer else "the answer is empty")
        right = answer == running_sums(example["digits"])[-1]
        return Verdict(float(right), answer, "correct" if right else "wrong sum")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("running_sums", self.seed, split, index))
        while True:
            digits = "".join(draw.choices("0123456789"[: self.largest + 1], k=draw.randint(self.low, self.high)))
            if hashed_split(digits, SHARES) == split:
                break
        count = 1
        while count < self.passes and draw.random() < self.again:
            count += 1
        chances = [self.slip * self.repair**number for number in range(count)]
        return {"digits": digits, "passes": [self._pass(digits, chance, draw) for chance in chances]}

    def _pass(self, digits: str, chance: float, draw: random.Random) -> str:
        slips = draw.random() < chance
        return running_sums(digits, draw.randrange(len(digits)) if slips else None, draw.randint(1, 9))


def running_sums(digits: str, slip_at: int | None = None, slip: int = 0) -> str:
    """Returns each place, its digit and the sum so far modulo 10; from `slip_at` on sums are `slip` too high."""
    sums = list(accumulate(int(digit) for digit in digits))
    first = len(sums) if slip_at is None else slip_at
    shown = [str((total + slip * (place >= first)) % 10) for place, total in enumerate(sums)]
    return "".join(place + digit + total for place, digit, total in zip(PLACES, digits, shown, strict=False))
