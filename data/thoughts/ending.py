"""What follows a question in generation: markers and latent columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.thoughts.curriculum import Chain, Curriculum, Markers
from data.thoughts.rows import thought_row
from settings.data import SoftConfig


class Ending(NamedTuple):
    """What follows every question when a model is asked: `tokens`, and how many of them are `thoughts`.

    Thoughts are the last tokens, or the last but one where a marker follows them. `soft`: how they are mixed, where
    they are no states.
    """

    tokens: tuple[int, ...] = ()
    thoughts: int = 0
    soft: SoftConfig | None = None

    @property
    def after(self) -> int:
        """How many tokens follow the thoughts."""
        return int(len(self.tokens) > self.thoughts)

    def to_dict(self) -> dict[str, Any]:
        """As config.json keeps it."""
        soft = {} if self.soft is None else {"soft": dataclasses.asdict(self.soft)}
        return {"tokens": self.tokens, "thoughts": self.thoughts, **soft}


def ending_from(found: Mapping[str, Any]) -> Ending:
    """What `to_dict` gave."""
    soft = found.get("soft")
    return Ending(tuple(found["tokens"]), found["thoughts"], None if soft is None else SoftConfig(**soft))


NO_ENDING = Ending()


def prompt_row(
    question: Sequence[int], curriculum: Curriculum, markers: Markers, stage: int, steps: int | None = None
) -> dict[str, Any]:
    """The part of `thought_row` that is given at evaluation: question, markers and thoughts.

    `steps`: of the chain, if `pad_to_max` is off and the last stage should depend on it; else as many as may be.
    """
    blank: list[list[int]] = [[]] * (curriculum.max_stage if steps is None else steps)
    return thought_row(Chain(question, blank, []), curriculum, markers, stage)


def ending_of(curriculum: Curriculum, markers: Markers, stage: int, places: int | None = None) -> Ending:
    """What `prompt_row` adds to a question, with another number of `places` if one is given (a study of thoughts).

    Raises ValueError for places in a method that has none.
    """
    if not curriculum.kind.slots:
        if places:
            raise ValueError(f"{curriculum.method!r} has no place for {places} thoughts; choose 0, or another method")
        return NO_ENDING
    if places is None:
        row = prompt_row([], curriculum, markers, stage)
        return Ending(tuple(row["tokens"].tolist()), int(row["latent"].sum()))
    if places < 0:
        raise ValueError(f"{places} thoughts were asked for; give 0 or more")
    return Ending(tuple(curriculum.wrapped(markers, places)), places if curriculum.kind.fed_back else 0)


def with_places(ending: Ending, markers: Markers, places: int) -> Ending:
    """A run's ending with another number of places, marked as there; of pause tokens if it has places but no thoughts.

    Raises ValueError for places after questions that had none, and for a negative number.
    """
    if not ending.tokens:
        raise ValueError(
            f"thoughts={places} requires a model trained with thoughts, and this one was not: leave them out"
        )
    pauses = markers.latent in ending.tokens and not ending.thoughts
    curriculum = Curriculum("pause" if pauses else "coconut", markers=markers.start in ending.tokens)
    return ending_of(curriculum, markers, 0, places)._replace(soft=ending.soft)
