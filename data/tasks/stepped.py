"""What tasks share whose question is one step taken so many times: the dial of steps, and whether it is shown."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data.sources.examples import Example, Generated
from data.tasks.base import check_split, stable_hash


@dataclass(frozen=True, kw_only=True)
class SteppedTask:
    """Steps are drawn from `min_steps`..`max_steps`, in `test` and `valid` from `test_min_steps`..`test_max_steps`
    (0: like the others); a number below ten is written with a zero before it where others have two digits. `depth` is
    the number of steps; without `show_steps` digits drawn at random stand in its place, and only the depth tells it.
    `train_size`, `valid_size`, `test_size`: lengths of the splits.
    """

    min_steps: int = 1
    max_steps: int = 4
    test_min_steps: int = 0
    test_max_steps: int = 0
    show_steps: bool = True
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    splits = ("train", "valid", "test")
    name = ""

    def examples(self, split: str) -> Sequence[Example]:
        """Returns the examples of a split, made on demand: `steps`, what is `shown` in their place, and the rest."""
        check_split(self.name, split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def depth(self, example: Example) -> int:
        """Returns the number of steps."""
        return int(example["steps"])

    def _example(self, split: str, index: int) -> Example:
        raise NotImplementedError

    def _check_steps(self, most: int, bound: str, of: str = "") -> None:
        """Raises ValueError where a range is empty or goes beyond `most`, which `bound` says in words; `of`: of what
        it is the bound.
        """
        for low, high in (self._steps("train"), self._steps("test")):
            if not 1 <= low <= high <= most:
                raise ValueError(f"1 <= least steps <= most steps {bound} must hold, got {low} and {high}{of}")

    def _steps(self, split: str) -> tuple[int, int]:
        if split == "train":
            return self.min_steps, self.max_steps
        return self.test_min_steps or self.min_steps, self.test_max_steps or self.max_steps

    @property
    def _digits(self) -> int:
        return len(str(max(self._steps("train")[1], self._steps("test")[1])))

    def _drawn(self, split: str, index: int) -> tuple[random.Random, int]:
        """What an example is drawn with, and the first that is drawn, its number of steps."""
        draw = random.Random(stable_hash(self.name, self.seed, split, index))
        return draw, draw.randint(*self._steps(split))

    def _shown(self, draw: random.Random) -> Example:
        """The field of digits that stand in the place of the steps, if they do."""
        return {} if self.show_steps else {"shown": draw.randrange(10**self._digits)}

    def _written(self, example: Example) -> str:
        """The number of steps, or what is shown in its place, as a prompt has it."""
        return f"{example.get('shown', example['steps']):0{self._digits}d}"
