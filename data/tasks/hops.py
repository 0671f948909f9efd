"""Following arrows: where a chain of so many steps through a list of pairs ends, without a step written down."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, hashed_split, stable_hash

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Hops:
    """Prompt `ad db bc ca:a2=` without the blanks, answer `b`: two steps from a. After `nodes` letters, each of which
    points to another, stand the first one and the number of steps.

    The arrows are one cycle through all nodes, so that every letter but the first is equally likely to be right and no
    chain comes back. Steps are drawn from `min_steps`..`max_steps`, in `test` and `valid` from `test_min_steps`..
    `test_max_steps` (0: like the others). `depth` is the number of steps; without `show_steps` digits drawn at random
    stand in its place, and only the depth tells it. A graph belongs to one split whatever the seed. `train_size`,
    `valid_size`, `test_size`: lengths of the splits. A k-hop induction task (2502.17416, section 2.2).
    """

    nodes: int = 16
    min_steps: int = 1
    max_steps: int = 4
    test_min_steps: int = 0
    test_max_steps: int = 0
    show_steps: bool = True
    seed: int = 0
    train_size: int = 1_000_000
    valid_size: int = 1000
    test_size: int = 2000

    alphabet = ascii_lowercase + "0123456789:="
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if not 8 <= self.nodes <= 26:
            raise ValueError(f"nodes must lie in 8..26, got {self.nodes}")
        for low, high in (self._steps("train"), self._steps("test")):
            if not 1 <= low <= high < self.nodes:
                raise ValueError(
                    f"1 <= least steps <= most steps < nodes must hold, got {low} and {high} of {self.nodes} nodes"
                )

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"pairs", "start", "steps"}`, and what is `shown` in the place of the steps, made on demand."""
        check_split("hops", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the pairs, a colon, the start, the number of steps and an equals sign."""
        shown = example.get("shown", example["steps"])
        return f"{example['pairs']}:{example['start']}{shown:0{self._digits}d}="

    def target(self, example: Example) -> str:
        """Returns the node after the steps."""
        pairs, node = example["pairs"], example["start"]
        arrows = dict(zip(pairs[::2], pairs[1::2], strict=True))
        for _ in range(example["steps"]):
            node = arrows[node]
        return str(node)

    def depth(self, example: Example) -> int:
        """Returns the number of steps."""
        return int(example["steps"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is the node and nothing else."""
        if len(text) != 1 or text not in ascii_lowercase[: self.nodes]:
            return Verdict(0.0, None, "the answer is not one node")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "another node")

    @property
    def _digits(self) -> int:
        return len(str(max(self._steps("train")[1], self._steps("test")[1])))

    def _steps(self, split: str) -> tuple[int, int]:
        if split == "train":
            return self.min_steps, self.max_steps
        return self.test_min_steps or self.min_steps, self.test_max_steps or self.max_steps

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("hops", self.seed, split, index))
        steps = draw.randint(*self._steps(split))
        while True:
            cycle = draw.sample(ascii_lowercase[: self.nodes], self.nodes)
            pairs = [a + b for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
            draw.shuffle(pairs)
            if hashed_split("".join(pairs), SHARES) == split:
                break
        shown = {} if self.show_steps else {"shown": draw.randrange(10**self._digits)}
        return {"pairs": "".join(pairs), "start": draw.choice(cycle), "steps": steps, **shown}
