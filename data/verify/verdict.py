"""What every verifier returns."""

from dataclasses import dataclass

TIMEOUT = "timeout"  # the reason of an answer whose judgement took too long


@dataclass(frozen=True)
class Verdict:
    """A judgement: a score in [0, 1], what was read from the text (None if nothing), and why."""

    score: float
    parsed: str | None
    reason: str
