"""Long multiplication with the digits reversed, as in implicit chain of thought (2405.14838)."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path

from data.names import unknown_name
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, chain_of_thought, check_split, hashed_split, judge_marked, stable_hash
from store.files import read_text

SHARES = {"test": 10, "valid": 5}
STYLES = ("spaced", "compact")
FILES = {"real_valid": "valid.txt", "real_test": "test_bigbench.txt"}
QUESTION = re.compile(r"([0-9](?: [0-9])*) \* ([0-9](?: [0-9])*)\|\|")


@dataclass(frozen=True)
class Multiplication:
    """Products of two numbers of exactly `digits` digits, least significant digit first.

    2365 x 4347 in the style `spaced`, the paper's: prompt `5 6 3 2 * 7 4 3 4`; steps `5 5 5 6 1`, then
    `0 0 6 4 9 0 ( 5 5 1 1 1 1 )`, ...: a partial product for each digit of the second number, behind as many zeros as
    that digit's place, and from the second to the last but one the sum so far; answer `5 5 6 0 8 2 0 1`. A partial
    product has digits + 1 digits besides those zeros, the answer 2 x digits. `compact`: the same without any spaces.

    `path`: the folder mult_icot of da03/Internalize_CoT_Step_by_Step, for the splits `real_valid` and `real_test`;
    training then leaves their products out. A product belongs to one split whatever the seed and the order of its
    factors. `train_size`, `valid_size`, `test_size`: lengths of the generated splits.
    """

    digits: int = 4
    style: str = "spaced"
    path: str = ""
    seed: int = 0
    train_size: int = 800_000
    valid_size: int = 1000
    test_size: int = 1000

    alphabet = "0123456789*()# \n"
    splits = ("train", "valid", "test", *FILES)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise unknown_name("style of 'multiplication'", self.style, STYLES)
        if not 2 <= self.digits <= 20:
            raise ValueError(f"digits must lie in 2..20, got {self.digits}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns products `{"a", "b"}`, made on demand or read.

        FileNotFoundError and ValueError for real rows that are missing or malformed, with `path` also for `train`.
        """
        check_split("multiplication", split, self.splits)
        if split in FILES:
            return self._real(split)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split, self._taken(split)))

    def prompt(self, example: Example) -> str:
        """Returns the two numbers around ` * ` and a newline."""
        return self._text(f"{_digits(example['a'], self.digits)} * {_digits(example['b'], self.digits)}\n")

    def target(self, example: Example) -> str:
        """Returns the steps and the marked answer."""
        return chain_of_thought(self.steps(example), self.answer(example))

    def steps(self, example: Example) -> list[str]:
        """Returns the partial products, with the sum so far where it is neither the first nor the last."""
        a, digits = example["a"], reversed(str(example["b"]))
        parts = [a * int(digit) * 10**place for place, digit in enumerate(digits)]
        steps = []
        for place, (part, total) in enumerate(zip(parts, accumulate(parts), strict=True)):
            width = self.digits + 1 + place
            shown = f" ( {_digits(total, width)} )" if 0 < place < self.digits - 1 else ""
            steps.append(self._text(f"{_digits(part, width)}{shown}"))
        return steps

    def answer(self, example: Example) -> str:
        """Returns the product with its 2 x digits digits."""
        return self._text(_digits(example["a"] * example["b"], 2 * self.digits))

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text after the last `#` is exactly the answer."""
        return judge_marked(self.answer(example), text)

    def _text(self, spaced: str) -> str:
        return spaced if self.style == "spaced" else spaced.replace(" ", "")

    def _real(self, split: str) -> list[Example]:
        return _read(self.path, self.digits, FILES[split])

    def _taken(self, split: str) -> frozenset[tuple[int, int]]:
        """The factors, sorted, that the real rows keep from training."""
        if not self.path or split != "train":
            return frozenset()
        return frozenset(_factors(row["a"], row["b"]) for real in FILES for row in self._real(real))

    def _example(self, split: str, taken: frozenset[tuple[int, int]], index: int) -> Example:
        draw = random.Random(stable_hash("multiplication", self.seed, split, index))
        low, stop = 10 ** (self.digits - 1), 10**self.digits
        while True:
            a, b = draw.randrange(low, stop), draw.randrange(low, stop)
            factors = _factors(a, b)
            if factors not in taken and hashed_split("{}*{}".format(*factors), SHARES) == split:
                return {"a": a, "b": b}


def _factors(a: int, b: int) -> tuple[int, int]:
    return min(a, b), max(a, b)


def _digits(number: int, width: int) -> str:
    """The digits of a number, least significant first, with spaces between."""
    return " ".join(reversed(str(number).zfill(width)))


@lru_cache(maxsize=4)
def _read(path: str, digits: int, name: str) -> list[Example]:
    if not path:
        raise FileNotFoundError(
            "the real rows of multiplication need path=<folder>: the one with 4_by_4_mult/ of "
            "github.com/da03/Internalize_CoT_Step_by_Step"
        )
    file = Path(path) / f"{digits}_by_{digits}_mult" / name
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; put it there, or give another path or number of digits")
    lines = read_text(file).rstrip().split("\n")
    return [_real_row(f"{file}, line {number}", line, digits) for number, line in enumerate(lines, start=1)]


def _real_row(where: str, line: str, digits: int) -> Example:
    """A published line as an example; ValueError where this module would not write the same line."""
    found = QUESTION.match(line)
    if found is None:
        raise ValueError(f"{where}: expected 'digits * digits||...', found {line[:80]!r}")
    a, b = (int(number.replace(" ", "")[::-1]) for number in found.groups())
    task, example = Multiplication(digits=digits), {"a": a, "b": b}
    own = f"{task.prompt(example).strip()}||{' + '.join(task.steps(example))} #### {task.answer(example)}"
    if own != line:
        raise ValueError(f"{where}: expected {own!r}, found {line!r}")
    return example
