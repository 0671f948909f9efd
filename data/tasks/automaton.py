"""A row of bits after some steps of a one-dimensional automaton: every step asks for one more round of thought."""

from dataclasses import dataclass

from data.sources.examples import Example
from data.tasks.base import Verdict, hashed_split
from data.tasks.stepped import SteppedTask

SHARES = {"test": 10, "valid": 5}


@dataclass(frozen=True)
class Automaton(SteppedTask):
    """Prompt `3:0110100101=`, answer the row after three steps: `steps`, the dial of difficulty, and `width` bits.

    In a step each bit becomes bit 4a + 2b + c of `rule`, Wolfram's number, for the bit c itself, its left neighbour b
    and a, left of that; outside stand zeros. Rule 86 flips a bit if one of the two left of it is set (rule 30 in a
    mirror); rows do not settle under it, as they do here under 30. Nothing is written down between the steps, and a bit
    of the answer does not follow from those before it. A row belongs to one split whatever the seed. `SteppedTask` has
    the other settings.
    """

    width: int = 12
    rule: int = 86

    alphabet = "0123456789:="
    name = "automaton"

    def __post_init__(self) -> None:
        if not 0 <= self.rule < 256:
            raise ValueError(f"rule must lie in 0..255, got {self.rule}")
        if not 8 <= self.width <= 256:
            raise ValueError(f"width must lie in 8..256: fewer bits leave a split empty; got {self.width}")
        self._check_steps(99, "<= 99")

    def prompt(self, example: Example) -> str:
        """Returns the number of steps, a colon, the row and an equals sign."""
        return f"{self._written(example)}:{example['row']}="

    def target(self, example: Example) -> str:
        """Returns the row after the steps."""
        row = example["row"]
        for _ in range(example["steps"]):
            row = self._step(row)
        return str(row)

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text is the row and nothing else."""
        if len(text) != self.width or not set(text) <= {"0", "1"}:
            return Verdict(0.0, None, f"the answer is not {self.width} bits")
        right = text == self.target(example)
        return Verdict(float(right), text, "correct" if right else "another row")

    def _step(self, row: str) -> str:
        padded = "00" + row
        return "".join(str(self.rule >> int(padded[i : i + 3], 2) & 1) for i in range(len(row)))

    def _example(self, split: str, index: int) -> Example:
        draw, steps = self._drawn(split, index)
        while True:
            row = f"{draw.getrandbits(self.width):0{self.width}b}"
            if hashed_split(row, SHARES) == split:
                return {"row": row, "steps": steps, **self._shown(draw)}
