"""A planted subsequence (after 2502.12118): the digits of the prompt, each one moved on, have to stand in order in the
answer, as one block; every token after that pays.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import NamedTuple

from data.names import unknown_name
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 20, "valid": 5}
DIGITS = "0123456789"
MOST_TRIES = 10_000


class Style(NamedTuple):
    """A scripted policy: after `wait` fillers each token begins the block with probability `start`, and each of the
    block is followed by the next with probability `keep`; a filler breaks it. `weight`: its share of the mixture.
    """

    weight: float
    wait: int
    start: float
    keep: float


# Mixtures of scripted policies. Rewards of "point" are all the same; those of "skewed" lie at the top but for a few.
BASES: dict[str, tuple[Style, ...]] = {
    "point": (Style(1 / 3, 2, 1.0, 1.0),) * 3,
    "low": (Style(1 / 3, 1, 0.5, 0.9),) * 3,
    "high": (Style(1 / 3, 0, 0.5, 0.9), Style(1 / 3, 0, 0.1, 0.9), Style(1 / 3, 0, 0.02, 0.9)),
    "skewed": (Style(0.95, 0, 1.0, 1.0), Style(0.05, 0, 0.0, 1.0)),
}


@dataclass(frozen=True)
class Planted:
    """Prompt `3142=`, answer a letter and digits up to `horizon` tokens, with the block 6475 in it: each digit plus 3.

    The digits of a prompt are `keys` different ones. A token at or behind the end of the block earns 1, so the return
    is from 0 to horizon - keys, or one more where the letter is left out; the score is its share of `horizon`.
    Demonstrations come from the mixture `base` (BASES): the letter names a style, which writes the rest; its fillers
    are digits that are not in the block. `correct`: only demonstrations with the block. A prompt belongs to one split
    whatever the seed. `train_size`, `valid_size`, `test_size`: lengths of the splits.
    """

    horizon: int = 32
    keys: int = 4
    base: str = "high"
    correct: bool = False
    seed: int = 0
    train_size: int = 100_000
    valid_size: int = 500
    test_size: int = 1000

    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise unknown_name("base", self.base, BASES)
        if not 3 <= self.keys <= 9:
            raise ValueError(f"keys must lie in 3..9: fewer leave a split empty; got {self.keys}")
        soonest = 1 + min(style.wait for style in self.styles) + self.keys
        if self.horizon < soonest:
            raise ValueError(f"horizon must be at least {soonest}, when this base has its block, got {self.horizon}")

    @property
    def styles(self) -> tuple[Style, ...]:
        """The scripted policies of the mixture."""
        return BASES[self.base]

    @property
    def alphabet(self) -> str:
        """The digits, the equals sign and the letters of the styles."""
        return DIGITS + "=" + ascii_lowercase[: len(self.styles)]

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"digits", "draw"}`, made on demand; `draw` seeds the demonstration."""
        check_split("planted", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the digits and an equals sign."""
        return f"{example['digits']}="

    def block(self, example: Example) -> str:
        """Returns what has to stand in the answer."""
        return "".join(DIGITS[(int(digit) + 3) % 10] for digit in example["digits"])

    def target(self, example: Example) -> str:
        """Returns an answer of the mixture, `horizon` tokens long."""
        draw, block = random.Random(example["draw"]), self.block(example)
        for _ in range(MOST_TRIES):
            answer = self._answer(draw, block)
            if not self.correct or block in answer:
                return answer
        raise RuntimeError(f"none of {MOST_TRIES} answers had the block: raise horizon, or take another base")

    def earned(self, example: Example, text: str) -> int:
        """Returns the sum of rewards over `horizon` tokens, also of an answer that ends sooner."""
        start = text[: self.horizon].find(self.block(example))
        return 0 if start < 0 else self.horizon - (start + self.keys) + 1

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores the return as a share of `horizon`."""
        earned = self.earned(example, text)
        if not earned:
            return Verdict(0.0, None, f"the block is not within {self.horizon} tokens")
        return Verdict(earned / self.horizon, self.block(example), f"{earned} tokens from the end of the block on")

    def _answer(self, draw: random.Random, block: str) -> str:
        fillers = [digit for digit in DIGITS if digit not in block]
        (number,) = draw.choices(range(len(self.styles)), [style.weight for style in self.styles])
        style, written, answer = self.styles[number], 0, ascii_lowercase[number]
        while len(answer) < self.horizon:
            chance = 0.0 if len(answer) <= style.wait else style.start if not written else style.keep
            goes_on = written < len(block) and draw.random() < chance
            answer += block[written] if goes_on else draw.choice(fillers)
            # Once the block is there, fillers follow.
            written = written + 1 if goes_on else written if written == len(block) else 0
        return answer

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("planted", self.seed, split, index))
        while True:
            digits = "".join(draw.sample(DIGITS, self.keys))
            if hashed_split(digits, SHARES) == split:
                return {"digits": digits, "draw": draw.getrandbits(64)}
