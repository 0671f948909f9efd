"""Parity: whether a string of bits holds an odd number of ones, asked of longer strings than were trained on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Parity:
    """Prompt `0110100=`, answer `1` for an odd number of ones and `0` for an even one.

    Strings of `train` and `valid` have `min_length`..`max_length` bits, those of `test` `test_min_length`..
    `test_max_length`, every length equally often. A string belongs to one split whatever the seed. `train_size`,
    `valid_size`, `test_size`: lengths of the splits. Lengths: 2410.01201, appendix (the Chomsky hierarchy's tasks).
    """

    min_length: int = 1
    max_length: int = 40
    test_min_length: int = 40
    test_max_length: int = 256
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    alphabet = "01="
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        for least, most in (("min_length", "max_length"), ("test_min_length", "test_max_length")):
            low, high = getattr(self, least), getattr(self, most)
            # Fewer bits make so few strings that a split might get none.
            if not 1 <= low <= high or high < 8:
                raise ValueError(f"1 <= {least} <= {most} and 8 <= {most}, got {low} and {high}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns strings `{"bits"}`, made on demand."""
        check_split("parity", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the bits and an equals sign."""
        return f"{example['bits']}="

    def target(self, example: Example) -> str:
        """Returns the parity."""
        return str(example["bits"].count("1") % 2)

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is the parity and nothing else."""
        if text not in ("0", "1"):
            return Verdict(0.0, None, "the answer is not one bit")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "wrong parity")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("parity", self.seed, split, index))
        test = split == "test"
        low, high = (self.test_min_length, self.test_max_length) if test else (self.min_length, self.max_length)
        while True:
            size = draw.randint(low, high)
            bits = f"{draw.getrandbits(size):0{size}b}"
            if hashed_split(bits, SHARES) == split:
                return {"bits": bits}
