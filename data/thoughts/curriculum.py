"""The curriculum of continuous thoughts: which stage a training step is in, and what a row holds there.

Coconut (2412.06769, section 3 and its baselines in section 4.2) puts thoughts_per_step thoughts in the place of each of
the first `stage` steps of a chain; iCoT (2405.14838) takes tokens from its left and puts nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from settings.data import CurriculumConfig


class Chain(NamedTuple):
    """The ids of a question, of each step of a solution, and of the answer with its eos."""

    question: Sequence[int]
    steps: Sequence[Sequence[int]]
    answer: Sequence[int]


class Markers(NamedTuple):
    """The ids of `<|start-latent|>`, `<|latent|>`, `<|end-latent|>`, and of padding."""

    start: int
    latent: int
    end: int
    pad: int


class Method(NamedTuple):
    """What sets a method apart: the stage it never leaves, and what stands where steps were."""

    fixed: str = ""  # "first" or "last" stage
    slots: bool = False  # a place for every thought
    fed_back: bool = False  # the place holds a thought, and not a token like any other
    tokens: bool = False  # stages count tokens, not steps


METHODS: dict[str, Method] = {
    "coconut": Method(slots=True, fed_back=True),
    "cot": Method(fixed="first"),
    "no_cot": Method(fixed="last"),
    "icot": Method(tokens=True),
    "pause": Method(fixed="last", slots=True),
    "no_curriculum": Method(fixed="last", slots=True, fed_back=True),
    "no_thought": Method(),
    "pause_as_thought": Method(slots=True),
}


@dataclass(frozen=True)
class Curriculum(CurriculumConfig):
    """Which stage a step of training is in, and what rows hold there; raises ValueError for impossible values.

    cot has all steps and no thoughts, no_cot neither; pause fills the last stage's places with a learnt token;
    no_curriculum is in the last stage from the start; no_thought and pause_as_thought follow the curriculum without
    places, or with learnt tokens in them. `stage_steps` is in the unit that is given to `stage`. Without `markers` the
    state of the question's last token is the first thought, and what follows is read from the last.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uniform_prob and (self.kind.fixed or self.kind.tokens):
            raise ValueError(f"uniform_prob={self.uniform_prob} mixes stages of steps, which {self.method!r} has not")
        if self.kind.fed_back and not self.thoughts_per_step * self.max_stage:
            raise ValueError(
                f"{self.method!r} with thoughts_per_step={self.thoughts_per_step} and max_stage={self.max_stage} has no"
                " thoughts; raise both to 1, or choose method 'no_thought'"
            )

    @property
    def kind(self) -> Method:
        """The method's line in `METHODS`."""
        return METHODS[self.method]

    @property
    def last_stage(self) -> int:
        """The stage that skips all steps."""
        return self.max_stage + 1

    def stage(self, step: int) -> int:
        """The stage of a step of training, 0 .. last_stage."""
        if self.kind.fixed:
            return 0 if self.kind.fixed == "first" else self.last_stage
        first = self.stage_steps if self.first_stage_steps is None else self.first_stage_steps
        return 0 if step < first else min(1 + (step - first) // self.stage_steps, self.last_stage)

    def starts_stage(self, step: int) -> bool:
        """Whether another stage than that of the step before begins here (the paper then resets the optimizer)."""
        return step > 0 and self.stage(step) != self.stage(step - 1)

    def thoughts(self, stage: int) -> int:
        """The most latent positions of a row in a batch of this stage: a static size of the program that runs it."""
        if not self.kind.fed_back:
            return 0
        return (self.max_stage if self.uniform_prob else min(stage, self.max_stage)) * self.thoughts_per_step

    def draw(self, chain: Chain, stage: int, rng: np.random.Generator) -> tuple[int, int]:
        """The stage of one row of training, and iCoT's offset."""
        if self.uniform_prob and rng.random() < self.uniform_prob:
            stage = int(rng.integers(len(chain.steps) + 1))
        smooth = self.kind.tokens and math.isfinite(self.smoothing)
        return stage, int(rng.geometric(-math.expm1(-self.smoothing))) - 1 if smooth else 0

    def places(self, steps: int, stage: int) -> int:
        """How many thoughts, or tokens in their stead, a row of a chain of `steps` steps has."""
        if not self.kind.slots:
            return 0
        beyond = stage > self.max_stage and not self.pad_to_max
        return (min(steps, self.max_stage) if beyond else min(stage, self.max_stage)) * self.thoughts_per_step

    def wrapped(self, markers: Markers, places: int) -> list[int]:
        """The tokens of a number of places, with those around them; none for a method without places."""
        if not self.kind.slots:
            return []
        before, after = ([markers.start], [markers.end]) if self.markers else ([], [])
        return [*before, *[markers.latent] * places, *after]

    def remaining(self, chain: Chain, stage: int, offset: int = 0) -> list[int]:
        """The tokens of the steps that are left."""
        if stage > self.max_stage:
            return []
        if self.kind.tokens:
            return [token for step in chain.steps for token in step][stage * self.removed_per_stage + offset :]
        return [token for step in chain.steps[stage:] for token in step]
