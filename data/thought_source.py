"""A source of batches for continuous thoughts and their baselines: a task's chains, as the curriculum has them now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.chat import prompt_tokens
from data.pipeline import Source, prompt_source
from data.sources import Example
from data.tasks.base import MARK, ReasoningTask
from data.thoughts import Batch, Chain, Curriculum, Markers, thought_batch
from data.tokenizer import Tokenizer

SPECIALS = ("<|start-latent|>", "<|latent|>", "<|end-latent|>")


def markers_of(tokenizer: Tokenizer) -> Markers:
    """The ids of `SPECIALS` and of padding; ValueError where one of them is not a token of its own."""
    start, latent, end = (_single(tokenizer, text) for text in SPECIALS)
    return Markers(start, latent, end, tokenizer.pad_id)


def _single(tokenizer: Tokenizer, text: str) -> int:
    try:
        ids = tokenizer.encode(text)
    except ValueError:  # a tokenizer of characters that lacks one of these
        ids = []
    if len(ids) != 1:
        raise ValueError(
            f"the tokenizer has no single token for {text}; add it to the special tokens, and a row for it to the"
            " embedding"
        )
    return ids[0]


def encode_chain(
    task: ReasoningTask, tokenizer: Tokenizer, example: Example, template: str = "none", system: str | None = None
) -> Chain:
    """An example's question, its steps (each a line) and its marked answer with eos, as ids."""
    question = prompt_tokens(tokenizer, task.prompt(example), template, system)
    steps = [tokenizer.encode(f"{step}\n") for step in task.steps(example)]
    return Chain(question, steps, [*tokenizer.encode(MARK + task.answer(example)), tokenizer.eos_id])


class ThoughtSource:
    """Batches of whatever stage a step is in, all of one shape; the next one depends on the step and the position."""

    def __init__(
        self,
        examples: Source,
        task: ReasoningTask,
        tokenizer: Tokenizer,
        curriculum: Curriculum,
        *,
        first: int,
        length: int,
        seed: Sequence[int],
        template: str = "none",
        system: str | None = None,
    ) -> None:
        """`examples`: a `prompt_source`; `seed`: of mixed stages and offsets, this process's number included."""
        self._examples, self._task, self._tokenizer, self._curriculum = examples, task, tokenizer, curriculum
        self._first, self._length, self._seed = first, length, list(seed)
        self._rendering: dict[str, Any] = {"template": template, "system": system}
        self._markers = markers_of(tokenizer)

    def next(self, params: Any = None, step: int | None = None) -> Batch:
        """The batch of a step, as `thought_batch` gives it."""
        if step is None:
            raise ValueError("a curriculum needs to know the step: call next(params, step)")
        elements = self._examples.next(params, step)
        chains = [encode_chain(self._task, self._tokenizer, each["example"], **self._rendering) for each in elements]
        # A draw belongs to a step, so that a resumed run repeats what would have been.
        rng = np.random.default_rng([*self._seed, step])
        sizes = {"first": self._first, "length": self._length}
        return thought_batch(chains, self._curriculum, self._markers, self._curriculum.stage(step), rng=rng, **sizes)

    def state(self) -> dict[str, Any]:
        """The JSON-able position after the last batch, and the curriculum it belongs to."""
        return {"examples": self._examples.state(), "curriculum": dataclasses.asdict(self._curriculum)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position; ValueError for another curriculum's or another data set's."""
        mine = dataclasses.asdict(self._curriculum)
        different = [name for name, value in mine.items() if state["curriculum"].get(name) != value]
        if different:
            pairs = ", ".join(
                f"{name}: saved {state['curriculum'].get(name)!r}, now {mine[name]!r}" for name in different
            )
            raise ValueError(f"this state belongs to another curriculum ({pairs}); restore with the same settings")
        self._examples.restore(state["examples"])

    def stats(self) -> dict[str, int]:
        """How many examples were read here, prefetched ones included."""
        return self._examples.stats()


def thought_source(
    task: ReasoningTask,
    tokenizer: Tokenizer,
    curriculum: Curriculum,
    *,
    first: int,
    length: int,
    split: str = "train",
    batch_size: int,
    seed: int = 0,
    template: str = "none",
    system: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 0,
) -> ThoughtSource:
    """A `ThoughtSource` over a split, `batch_size` rows of this process.

    `first`, `length`: the fixed sizes of rows, see `data.thoughts.sizes`; a row that does not fit raises ValueError.
    """
    if not all(hasattr(task, name) for name in ("steps", "answer")):
        raise ValueError(f"{type(task).__name__} has no steps to take away; choose a task of data.tasks with `steps`")
    rendering: dict[str, Any] = {"template": template, "system": system}
    hosts: dict[str, Any] = {"process_index": process_index, "process_count": process_count, "prefetch": prefetch}
    examples = prompt_source(task, tokenizer, split=split, batch_size=batch_size, seed=seed, **rendering, **hosts)
    drawn = (seed, process_index)
    return ThoughtSource(examples, task, tokenizer, curriculum, first=first, length=length, seed=drawn, **rendering)
