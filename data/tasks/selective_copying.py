"""Selective copying (2312.00752, section 4.1): remember what matters among blanks, and say it in order."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from string import ascii_lowercase

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}
BLANK, MARKER = ".", "?"


@dataclass(frozen=True)
class SelectiveCopying:
    """`tokens` letters out of `symbols` among blanks in a text of `length`: prompt `..c.a..b??`, answer `a`.

    k markers ask for the k-th letter, k uniform in 1..tokens. In the paper a text ends in one marker per letter and all
    letters are predicted there, none of them ever fed back; asking for one of them gives the same predictions from
    the same inputs, while answering with all of them would show the model what it has said already.
    A text belongs to one split whatever the seed. `train_size`, `valid_size`, `test_size`: lengths of the splits.
    """

    length: int = 64
    tokens: int = 16
    symbols: int = 14
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 2 <= self.symbols <= 26:
            raise ValueError(f"symbols must lie in 2..26, got {self.symbols}")
        if not 1 <= self.tokens <= self.length:
            raise ValueError(f"tokens must lie in 1..length={self.length}, got {self.tokens}")
        texts = comb(self.length, self.tokens) * self.symbols**self.tokens
        if texts < 1000:
            raise ValueError(f"only {texts} texts are too few to share out: raise length, tokens or symbols")

    @property
    def alphabet(self) -> str:
        """The letters, the blank and the marker."""
        return ascii_lowercase[: self.symbols] + BLANK + MARKER

    def examples(self, split: str) -> Sequence[Example]:
        """Returns texts `{"text", "asked"}`, made on demand; `asked` counts from 1."""
        check_split("selective_copying", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the text and its markers."""
        return example["text"] + MARKER * example["asked"]

    def target(self, example: Example) -> str:
        """Returns the letter asked for."""
        return example["text"].replace(BLANK, "")[example["asked"] - 1]

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is that letter and nothing else."""
        if len(text) != 1:
            return Verdict(0.0, None, f"{len(text)} characters instead of one letter")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "wrong letter")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("selective_copying", self.seed, split, index))
        while True:
            cells = [BLANK] * self.length
            for place in draw.sample(range(self.length), self.tokens):
                cells[place] = ascii_lowercase[draw.randrange(self.symbols)]
            text = "".join(cells)
            if hashed_split(text, SHARES) == split:
                return {"text": text, "asked": draw.randint(1, self.tokens)}
