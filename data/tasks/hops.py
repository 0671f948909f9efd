"""Following arrows: where a chain of so many steps through a list of pairs ends, without a step written down."""

from dataclasses import dataclass
from string import ascii_lowercase

from data.sources.examples import Example
from data.tasks.base import Verdict, hashed_split
from data.tasks.stepped import SteppedTask

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Hops(SteppedTask):
    """Prompt `ad db bc ca:a2=` without the blanks, answer `b`: two steps from a. After `nodes` letters, each of which
    points to another, stand the first one and the number of steps.

    The arrows are one cycle through all nodes, so that every letter but the first is equally likely to be right and no
    chain comes back. A graph belongs to one split whatever the seed. `SteppedTask` has the other settings. A k-hop
    induction task (2502.17416, section 2.2).
    """

    nodes: int = 16

    alphabet = ascii_lowercase + "0123456789:="
    name = "hops"

    def __post_init__(self) -> None:
        if not 8 <= self.nodes <= 26:
            raise ValueError(f"nodes must lie in 8..26, got {self.nodes}")
        self._check_steps(self.nodes - 1, "< nodes", f" of {self.nodes} nodes")

    def prompt(self, example: Example) -> str:
        """Returns the pairs, a colon, the start, the number of steps and an equals sign."""
        return f"{example['pairs']}:{example['start']}{self._written(example)}="

    def target(self, example: Example) -> str:
        """Returns the node after the steps."""
        pairs, node = example["pairs"], example["start"]
        arrows = dict(zip(pairs[::2], pairs[1::2], strict=True))
        for _ in range(example["steps"]):
            node = arrows[node]
        return str(node)

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is the node and nothing else."""
        if len(text) != 1 or text not in ascii_lowercase[: self.nodes]:
            return Verdict(0.0, None, "the answer is not one node")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "another node")

    def _example(self, split: str, index: int) -> Example:
        draw, steps = self._drawn(split, index)
        while True:
            cycle = draw.sample(ascii_lowercase[: self.nodes], self.nodes)
            pairs = [a + b for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
            draw.shuffle(pairs)
            if hashed_split("".join(pairs), SHARES) == split:
                break
        shown = self._shown(draw)
        return {"pairs": "".join(pairs), "start": draw.choice(cycle), "steps": steps, **shown}
