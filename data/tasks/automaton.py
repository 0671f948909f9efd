"""A row of bits after some steps of a one-dimensional automaton: every step asks for one more round of thought."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Automaton:
    """Prompt `3:0110100101=`, answer the row after three steps: `steps`, the dial of difficulty, and `width` bits.

    In a step each bit becomes bit 4a + 2b + c of `rule`, Wolfram's number, for the bit c itself, its left neighbour b
    and a, left of that; outside stand zeros. Rule 86 flips a bit if one of the two left of it is set (rule 30 in a
    mirror); rows do not settle under it, as they do here under 30. Nothing is written down between the steps, and a bit
    of the answer does not follow from those before it. Steps are drawn from `min_steps`..`max_steps`, in `test` and
    `valid` from `test_min_steps`..`test_max_steps` (0: like the others); a number below ten is written with a zero
    before it where others have two digits. `depth` is the number of steps; without `show_steps` digits drawn at random
    stand in its place, and only the depth tells it. A row belongs to one split whatever the seed. `train_size`,
    `valid_size`, `test_size`: lengths of the splits.
    """

    width: int = 12
    rule: int = 86
    min_steps: int = 1
    max_steps: int = 4
    test_min_steps: int = 0
    test_max_steps: int = 0
    show_steps: bool = True
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    alphabet = "0123456789:="
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 0 <= self.rule < 256:
            raise ValueError(f"rule must lie in 0..255, got {self.rule}")
        if not 8 <= self.width <= 256:
            raise ValueError(f"width must lie in 8..256: fewer bits leave a split empty; got {self.width}")
        for low, high in (self._steps("train"), self._steps("test")):
            if not 1 <= low <= high <= 99:
                raise ValueError(f"1 <= least steps <= most steps <= 99 must hold, got {low} and {high}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"row", "steps"}`, and what is `shown` in the place of the steps, made on demand."""
        check_split("automaton", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the number of steps, a colon, the row and an equals sign."""
        return f"{example.get('shown', example['steps']):0{self._digits}d}:{example['row']}="

    def target(self, example: Example) -> str:
        """Returns the row after the steps."""
        row = example["row"]
        for _ in range(example["steps"]):
            row = self._step(row)
        return str(row)

    def depth(self, example: Example) -> int:
        """Returns the number of steps."""
        return int(example["steps"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is the row and nothing else."""
        if len(text) != self.width or not set(text) <= {"0", "1"}:
            return Verdict(0.0, None, f"the answer is not {self.width} bits")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "another row")

    def _step(self, row: str) -> str:
        padded = "00" + row
        return "".join(str(self.rule >> int(padded[i : i + 3], 2) & 1) for i in range(len(row)))

    def _steps(self, split: str) -> tuple[int, int]:
        if split == "train":
            return self.min_steps, self.max_steps
        return self.test_min_steps or self.min_steps, self.test_max_steps or self.max_steps

    @property
    def _digits(self) -> int:
        return len(str(max(self._steps("train")[1], self._steps("test")[1])))

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("automaton", self.seed, split, index))
        steps = draw.randint(*self._steps(split))
        while True:
            row = f"{draw.getrandbits(self.width):0{self.width}b}"
            if hashed_split(row, SHARES) == split:
                break
        shown = {} if self.show_steps else {"shown": draw.randrange(10**self._digits)}
        return {"row": row, "steps": steps, **shown}
