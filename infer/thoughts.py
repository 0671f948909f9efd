"""Continuous thoughts at the end of prompts, as the sampler is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.thoughts import Ending
from infer.sampling import at_least
from settings.data import SoftConfig


@dataclass(frozen=True)
class ThoughtNoise:
    """By what the thoughts of samples differ: `dropout` of states, or `kind` of noise on the log-probs of soft
    thoughts, times `scale` (infer/feedback.py).
    """

    dropout: float = 0.0
    kind: str = "none"
    scale: float = 1.0

    @property
    def quiet(self) -> bool:
        """Whether there is none."""
        return not self.dropout and self.kind == "none"


QUIET = ThoughtNoise()


@dataclass(frozen=True)
class Thoughts:
    """Every prompt ends in `count` latent tokens and `after` further ones (a marker, or none); the model reads its own
    states in the latents' place (model/latent.py), or mixes tokens by the rules `soft`; `noise` makes the thoughts of
    samples differ.
    """

    count: int = 0
    after: int = 1
    soft: SoftConfig | None = None
    noise: ThoughtNoise = QUIET

    def __post_init__(self) -> None:
        at_least("thoughts", self.count, 0)
        at_least("tokens after thoughts", self.after, 0)
        if self.noise.kind != "none" and self.soft is None:
            raise ValueError(f"{self.noise} is of soft thoughts, and these are states (thoughts.feedback)")
        if self.noise.dropout and self.soft is not None:
            raise ValueError(f"{self.noise} is of states that are fed back, and these thoughts are mixtures of tokens")


NO_THOUGHTS = Thoughts()


def thoughts_of(ending: Ending) -> Thoughts | None:
    """The thoughts among the tokens that follow every question; None where there are none."""
    return Thoughts(ending.thoughts, ending.after, ending.soft) if ending.thoughts else None


def check_quiet(thoughts: Thoughts | None) -> None:
    """Raises ValueError for samples that are to go on from prefixes though their thoughts differ."""
    if thoughts and not thoughts.noise.quiet:
        raise ValueError(
            f"{thoughts.noise}: samples that start from prefixes share what was read of their prompt, thoughts too:"
            " leave the noise or the continuation out"
        )


def check_thoughts(tokens: np.ndarray, mask: np.ndarray, thoughts: Thoughts | None) -> None:
    """Raises ValueError unless all prompts, left-padded, end in a token, the latent tokens and those after them."""
    if thoughts is None or not thoughts.count:
        return
    first = tokens.shape[1] - thoughts.after - thoughts.count
    if first < 1 or not mask[:, first - 1].all():
        raise ValueError(f"{thoughts}: every prompt needs a token before its thoughts")
    places = np.unique(tokens[:, first : first + thoughts.count])
    if len(places) > 1:
        raise ValueError(
            f"{thoughts}, but prompts do not end in so many latent tokens and {thoughts.after} more: the tokens there"
            f" are {places[:5].tolist()}; append data.thoughts.Ending.tokens to each"
        )
