"""Rows for continuous thoughts and their baselines: a chain of thought that a curriculum shortens, stage by stage.

Coconut (2412.06769, section 3 and its baselines in section 4.2) puts thoughts_per_step thoughts in the place of each of
the first `stage` steps of a chain; iCoT (2405.14838) takes tokens from its left and puts nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from settings.data import CurriculumConfig

Batch = dict[str, np.ndarray]


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


class Ending(NamedTuple):
    """What follows every question when a model is asked: `tokens`, and how many of them are `thoughts`.

    Thoughts are the last tokens, or the last but one where a marker follows them.
    """

    tokens: tuple[int, ...] = ()
    thoughts: int = 0

    @property
    def after(self) -> int:
        """How many tokens follow the thoughts."""
        return int(len(self.tokens) > self.thoughts)


NO_ENDING = Ending()


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
                f"{self.method!r} with thoughts_per_step={self.thoughts_per_step} and max_stage={self.max_stage} never"
                " thinks; raise both to 1, or choose method 'no_thought'"
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
        """The tokens of so many places, with those around them; none for a method without places."""
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


def thought_row(chain: Chain, curriculum: Curriculum, markers: Markers, stage: int, offset: int = 0) -> dict[str, Any]:
    """One row without padding: `tokens`, `positions`, `latent`, `mask` [n], and `answer`, the answer's first column.

    The loss (`mask` 1) is on what follows the end marker, or the question where a method has no markers.
    """
    places, rest = curriculum.places(len(chain.steps), stage), curriculum.remaining(chain, stage, offset)
    slots = curriculum.wrapped(markers, places)
    tokens = [*chain.question, *slots, *rest, *chain.answer]
    prompt = len(chain.question) + len(slots)
    positions = np.arange(len(tokens))
    if curriculum.kind.tokens and curriculum.keep_position:
        positions[prompt:] += sum(map(len, chain.steps)) - len(rest)
    latent = np.zeros(len(tokens), bool)
    if curriculum.kind.fed_back:
        begin = len(chain.question) + curriculum.markers
        latent[begin : begin + places] = True
    mask = (np.arange(len(tokens)) >= prompt).astype(np.float32)
    tokens_array = np.array(tokens, np.int32)
    return dict(tokens=tokens_array, positions=positions, latent=latent, mask=mask, answer=prompt + len(rest))


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
        raise ValueError(f"{places} thoughts were asked for, but this model was never taught to think; leave them out")
    pauses = markers.latent in ending.tokens and not ending.thoughts
    curriculum = Curriculum("pause" if pauses else "coconut", markers=markers.start in ending.tokens)
    return ending_of(curriculum, markers, 0, places)


def collate(rows: Sequence[dict[str, Any]], pad: int, *, first: int | None = None, length: int | None = None) -> Batch:
    """Rows padded so that first latents share a column: `tokens`, `positions`, `segments`, `mask`, `latent`, `answer`.

    Rows with latents are moved right to the column `first` (None: the smallest that serves all), others stay, then all
    are filled up to `length` (None: the longest). Padding has segment 0, position 0 and mask 0. `answer` [B] is the
    column of the answer's first token. Raises ValueError for a row that does not fit.
    """
    heads = [int(row["latent"].argmax()) if row["latent"].any() else None for row in rows]
    furthest = max((head for head in heads if head is not None), default=0)
    if first is not None and furthest > first:
        raise ValueError(f"a first latent stands in column {furthest}, but first={first}; raise it to {furthest}")
    column = furthest if first is None else first
    moves = [0 if head is None else column - head for head in heads]
    longest = max(len(row["tokens"]) + move for row, move in zip(rows, moves, strict=True))
    if length is not None and longest > length:
        raise ValueError(f"a row takes {longest} columns with its padding on the left, but length={length}; raise it")
    width, size = longest if length is None else length, len(rows)
    kinds: dict[str, Any] = dict(tokens=np.int32, positions=np.int32, segments=np.int32, mask=np.float32, latent=bool)
    batch = {name: np.full((size, width), pad if name == "tokens" else 0, kind) for name, kind in kinds.items()}
    for i, (row, move) in enumerate(zip(rows, moves, strict=True)):
        where = slice(move, move + len(row["tokens"]))
        for name in kinds:
            batch[name][i, where] = 1 if name == "segments" else row[name]
    answers = [row["answer"] + move for row, move in zip(rows, moves, strict=True)]
    return batch | {"answer": np.array(answers, np.int32)}


def thought_batch(
    chains: Sequence[Chain],
    curriculum: Curriculum,
    markers: Markers,
    stage: int,
    *,
    rng: np.random.Generator | None = None,
    first: int | None = None,
    length: int | None = None,
) -> Batch:
    """A batch of a stage, as `collate` gives it; `rng` draws mixed stages and offsets, None for neither.

    `first` and `length`: fixed sizes, such as `sizes` finds, so that a stage is one program.
    """
    draws = [(stage, 0) if rng is None else curriculum.draw(chain, stage, rng) for chain in chains]
    rows = [thought_row(chain, curriculum, markers, *drawn) for chain, drawn in zip(chains, draws, strict=True)]
    return collate(rows, markers.pad, first=first, length=length)


def paired_batch(
    chains: Sequence[Chain],
    thoughts: int,
    markers: Markers,
    *,
    announced: int = 0,
    first: int | None = None,
    length: int | None = None,
) -> Batch:
    """CODI's two views (2502.21074, section 3): `thoughts` thoughts and the answer; under `teacher_...` all steps.

    `announced`: how many tokens at the front of every answer only announce it ("### "); `answer` points behind them.
    """
    short = min(len(chain.answer) for chain in chains)
    if not 0 <= announced < short:
        raise ValueError(f"announced={announced}, but the shortest answer has {short} tokens; something must be left")
    student = Curriculum("no_curriculum", thoughts_per_step=thoughts, max_stage=1)
    batch = thought_batch(chains, student, markers, student.last_stage, first=first, length=length)
    teacher = thought_batch(chains, Curriculum("cot"), markers, 0, length=length)
    both = batch | {f"teacher_{name}": value for name, value in teacher.items() if name != "latent"}
    return both | {name: both[name] + announced for name in ("answer", "teacher_answer")}


def sizes(curriculum: Curriculum, chains: Sequence[Chain]) -> tuple[int, int]:
    """The smallest (first, length) that every row of every stage of these chains fits into."""
    first = max(len(chain.question) for chain in chains) + curriculum.markers
    return first, max(_width(curriculum, chain, first) for chain in chains)


def check_fit(curriculum: Curriculum, chains: Sequence[Chain], length: int) -> None:
    """Raises ValueError where a curriculum and data do not go together.

    No chains, no steps to take away, stages for more steps than any chain has, rows longer than `length` columns.
    """
    if not chains:
        raise ValueError("no chains to train on; check the task's path and options")
    most = max(len(chain.steps) for chain in chains)
    if not most and curriculum.method != "no_cot":
        raise ValueError(f"no chain has a step, so {curriculum.method!r} has nothing to shorten; use method 'no_cot'")
    if not curriculum.kind.tokens and not curriculum.kind.fixed and curriculum.max_stage > most:
        raise ValueError(
            f"max_stage={curriculum.max_stage}, but the longest chain has {most} steps: later stages would only add"
            f" thoughts; set max_stage to {most} or less"
        )
    first, needed = sizes(curriculum, chains)
    if needed > length:
        worst = max(range(len(chains)), key=lambda i: _width(curriculum, chains[i], first))
        raise ValueError(
            f"chain {worst} needs {needed} columns in its longest stage (question and marker padded to {first}, up to"
            f" {curriculum.thoughts(curriculum.last_stage)} thoughts), but rows hold {length}; raise the length, drop"
            " long chains, or lower thoughts_per_step"
        )


def _width(curriculum: Curriculum, chain: Chain, first: int) -> int:
    """The most columns any stage needs for a chain: rows with thoughts begin further right than others."""
    stages = [curriculum.stage(0)] if curriculum.kind.fixed else list(range(curriculum.last_stage + 1))
    widths = []
    for stage in stages:
        places = curriculum.places(len(chain.steps), stage)
        begin = first - curriculum.markers if places and curriculum.kind.fed_back else len(chain.question)
        slots = places + 2 * curriculum.markers if curriculum.kind.slots else 0
        widths.append(begin + slots + len(curriculum.remaining(chain, stage)) + len(chain.answer))
    return max(widths)
