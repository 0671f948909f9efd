"""What every verifier returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A judgement: a score in [0, 1], what was read from the text (None if nothing), and why."""

    score: float
    parsed: str | None
    reason: str
