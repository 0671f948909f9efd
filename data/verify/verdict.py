"""What every verifier returns."""

from dataclasses import dataclass

from store.json_files import without_surrogates

TIMEOUT = "timeout"  # the reason of an answer whose judgement took too long


@dataclass(frozen=True)
class Verdict:
    """A judgement: a score in [0, 1], what was read from the text (None if nothing), and why.

    Both texts may come from what a model wrote or what its code said: surrogates in them become U+FFFD.
    """

    score: float
    parsed: str | None
    reason: str

    def __post_init__(self) -> None:
        for name in ("parsed", "reason"):
            if isinstance(found := getattr(self, name), str):
                object.__setattr__(self, name, without_surrogates(found))
