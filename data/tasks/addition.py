"""Adding two numbers, with demonstrations that answer directly or write down every column and carry first.

Some may leave out the delimiter before their answer, for models that know more than their form lets them show.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data.chat import THINK_CLOSE, THINK_OPEN, after_thinking
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Addition:
    """Sums of two numbers of exactly `digits` digits: prompt `123+456=`, answer `579`.

    A share `direct_share` of the demonstrations is the answer alone; the others show the columns first, least
    significant first, with the incoming carry as the third addend:
    `<think>3+6+0=9,2+5+0=7,1+4+0=5</think>579`. Which form example i takes depends on (seed, split, i) alone.
    With `max_digits` the numbers have `digits` to `max_digits` digits, as many in both. A share `unmarked_share` of the
    demonstrations has no `</think>`: the verifier, which finds the answer behind it, cannot read them. A sum belongs to
    one split whatever the seed and the order of its addends, so test sums never occur in training. `train_size`,
    `valid_size`, `test_size`: lengths of the splits.
    """

    digits: int = 3
    direct_share: float = 0.75
    seed: int = 0
    train_size: int = 200_000
    valid_size: int = 1000
    test_size: int = 2000
    max_digits: int = 0
    unmarked_share: float = 0.0

    alphabet = "0123456789+=,"
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 40:
            raise ValueError(f"digits must lie in 1..40, got {self.digits}")
        if self.max_digits and not self.digits <= self.max_digits <= 40:
            raise ValueError(f"max_digits must lie in digits={self.digits}..40, or be 0; got {self.max_digits}")
        for name in ("direct_share", "unmarked_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share in [0, 1], got {getattr(self, name)}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns sums `{"a", "b", "think"}`, made on demand; `digits` and `unmarked` besides where they vary."""
        check_split("addition", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns `a+b=`."""
        return f"{example['a']}+{example['b']}="

    def target(self, example: Example) -> str:
        """Returns the sum, after its columns where the example asks for them."""
        answer = str(example["a"] + example["b"])
        if not example["think"]:
            return answer
        close = "" if example.get("unmarked") else THINK_CLOSE
        return f"{THINK_OPEN}{columns(example['a'], example['b'])}{close}{answer}"

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when what follows the last `</think>` is the sum and nothing else."""
        answer = after_thinking(text).strip(" \n\t\r")
        if not (answer.isascii() and answer.isdigit()):
            return Verdict(0.0, None, "the answer is not a plain number" if answer else "the answer is empty")
        right = answer == str(example["a"] + example["b"])
        return Verdict(float(right), answer, "correct" if right else "wrong sum")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("addition", self.seed, split, index))
        think = draw.random() >= self.direct_share
        varied = self._varied(draw)
        digits = varied.get("digits", self.digits)
        low, stop = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits
        while True:
            a, b = draw.randrange(low, stop), draw.randrange(low, stop)
            if hashed_split(f"{min(a, b)}+{max(a, b)}", SHARES) == split:
                return {"a": a, "b": b, "think": think, **varied}

    def _varied(self, draw: random.Random) -> Example:
        """What differs between examples besides: nothing is drawn for an option that is off."""
        digits = {"digits": draw.randint(self.digits, self.max_digits)} if self.max_digits else {}
        return digits | ({"unmarked": draw.random() < self.unmarked_share} if self.unmarked_share else {})


def columns(a: int, b: int) -> str:
    """Returns the columns of a sum, least significant first, each as `digit+digit+carry=column sum`."""
    width = max(len(str(a)), len(str(b)))
    steps, carry = [], 0
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width)), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return ",".join(steps)
