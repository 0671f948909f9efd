"""Addition whose written columns may be in a second alphabet of digits, or long: what a teacher writes, to be studied.

Two alphabets stand for the two languages that DeepSeek-R1-Zero mixes in its thoughts (2501.12948, section 2.2.4); short
and long columns for the short and long chains of thought that small students differ in (2502.12143).
"""

import random
from dataclasses import dataclass

from data.chat import THINK_CLOSE, THINK_OPEN
from data.sources.examples import Example
from data.tasks.addition import Addition, columns
from data.tasks.base import stable_hash

DIGITS, LETTERS = "0123456789", "abcdefghij"
IN_LETTERS = str.maketrans(DIGITS, LETTERS)


@dataclass(frozen=True)
class TracedAddition(Addition):
    """Sums as in `addition`: prompt `12+34=`, answer `46`, in digits always.

    Of the columns in a thought a share `foreign_share` is written in letters, `c+e+a=g` for `2+4+0=6`. A share
    `long_share` of the thoughts is long: each column is checked by taking away, `2+4+0=6?6-4-0=2`, and with
    probability `dead_ends` begins with a wrong sum that is taken back, `2+4+0=8!2+4+0=6?6-4-0=2`. A share
    `untagged_share` of the thoughts stands without its delimiters: its answer cannot be read.
    """

    foreign_share: float = 0.0
    long_share: float = 0.0
    dead_ends: float = 0.5
    untagged_share: float = 0.0

    alphabet = DIGITS + LETTERS + "+-=,!?"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("foreign_share", "long_share", "dead_ends", "untagged_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share in [0, 1], got {getattr(self, name)}")

    def target(self, example: Example) -> str:
        """Returns the sum, after its columns where the example asks for them."""
        answer = str(example["a"] + example["b"])
        if not example["think"]:
            return answer
        draw = random.Random(stable_hash("traced_addition", self.seed, example["a"], example["b"]))
        steps = columns(example["a"], example["b"]).split(",")
        if draw.random() < self.long_share:
            steps = [self._long(step, draw) for step in steps]
        thought = ",".join(step.translate(IN_LETTERS) if draw.random() < self.foreign_share else step for step in steps)
        if draw.random() < self.untagged_share:
            return f"{thought},{answer}"
        return f"{THINK_OPEN}{thought}{THINK_CLOSE}{answer}"

    def parts(self, example: Example, text: str) -> dict[str, bool]:
        """Whether a text has one closed thought with something in it, and writes that in digits alone."""
        del example
        opened, _, rest = text.partition(THINK_OPEN)
        thought, closed, _ = rest.partition(THINK_CLOSE)
        thinks = not opened and bool(thought.strip()) and bool(closed)
        return {"thinks": thinks, "one_alphabet": thinks and not set(thought) & set(LETTERS)}

    def _long(self, step: str, draw: random.Random) -> str:
        left, total = step.split("=")
        x, y, carry = left.split("+")
        checked = f"{step}?{total}-{y}-{carry}={x}"
        if draw.random() >= self.dead_ends:
            return checked
        wrong = (int(total) + draw.randint(1, 9)) % 20
        return f"{left}={wrong}!{checked}"
