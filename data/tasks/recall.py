"""Repeating a text of distinct symbols: every answer symbol stands as far back as the text is long."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile

from data.chat import after_thinking
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}
# CJK unified ideographs: the longest run of characters that are one code point each and look different.
FIRST, MOST = 0x4E00, 0x9FFF - 0x4E00 + 1


@dataclass(frozen=True)
class Recall:
    """Copying: prompt `=天地玄黄=`, answer `天地玄黄`; every length from `shortest` to `longest` symbols is as likely.

    No symbol of the `symbols` comes again before all have come, so up to that length a symbol tells where in the text
    one is, and the next one is found by looking there alone: an induction head's task (2209.11895) whose distance is
    the text's length. A text belongs to one split whatever the seed. `train_size`, `valid_size`, `test_size`: lengths
    of the splits.
    """

    shortest: int = 4
    longest: int = 31
    symbols: int = 512
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"1 <= shortest <= longest must hold, got {self.shortest} and {self.longest}")
        if not 2 <= self.symbols <= MOST:
            raise ValueError(f"symbols must lie in 2..{MOST}, got {self.symbols}")

    @property
    def alphabet(self) -> str:
        """The delimiter, then the symbols."""
        return "=" + "".join(map(chr, range(FIRST, FIRST + self.symbols)))

    def examples(self, split: str) -> Sequence[Example]:
        """Returns texts `{"text"}`, made on demand."""
        check_split("recall", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the text between two `=`."""
        return f"={example['text']}="

    def target(self, example: Example) -> str:
        """Returns the text."""
        return str(example["text"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when what follows the last `</think>` is the text and nothing else."""
        answer, wanted = after_thinking(text).strip(" \n\t\r"), str(example["text"])
        if answer == wanted:
            return Verdict(1.0, answer, "correct")
        right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(answer, wanted, strict=False))))
        return Verdict(0.0, answer[: len(wanted) + 1], f"the first {right} symbols of {len(wanted)} are right")

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("recall", self.seed, split, index))
        codes = range(FIRST, FIRST + self.symbols)
        while True:
            rounds, rest = divmod(draw.randint(self.shortest, self.longest), self.symbols)
            drawn = [draw.sample(codes, size) for size in [self.symbols] * rounds + [rest]]
            text = "".join(map(chr, chain.from_iterable(drawn)))
            if hashed_split(text, SHARES) == split:
                return {"text": text}
