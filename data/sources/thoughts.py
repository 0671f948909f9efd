"""A source of batches for continuous thoughts and their baselines: a task's chains, as the curriculum has them now."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.chat import prompt_tokens
from data.sources.batch import TokenRows
from data.sources.examples import Example
from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows, Rows, ThoughtRows
from data.tasks.base import MARK, ReasoningTask, Task, separator_of
from data.thoughts import Chain, Curriculum, Markers, paired_batch, thought_batch
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import encode_after

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


def check_reasoning(task: Task) -> None:
    """Raises ValueError for a task whose demonstrations have no steps."""
    if not all(hasattr(task, name) for name in ("steps", "answer")):
        raise ValueError(f"{type(task).__name__} has no steps to take away; choose a task of data.tasks with `steps`")


def encode_chain(
    task: ReasoningTask, tokenizer: Tokenizer, example: Example, template: str = "none", system: str | None = None
) -> Chain:
    """An example's question, its steps (each with what ends it) and its marked answer with eos, as ids."""
    question = prompt_tokens(tokenizer, task.prompt(example), template, system)
    steps = [encode_after(step + separator_of(task), tokenizer, question) for step in task.steps(example)]
    return Chain(question, steps, [*encode_after(MARK + task.answer(example), tokenizer, question), tokenizer.eos_id])


def announced(tokenizer: Tokenizer, chains: Sequence[Chain]) -> int:
    """How many tokens at the front of all answers only announce them, whatever the tokenizer makes of `MARK`."""
    mark = encode_after(MARK, tokenizer, chains[0].question)
    columns = zip(mark, *(chain.answer[:-1] for chain in chains), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


class ThoughtSource:
    """Batches of whatever stage a step is in; the next one depends on the step and the position.

    All have one width. `latent` is that of `collate` cut to the columns `first` .. `first` + n - 1, n being the
    `Curriculum.thoughts` of the stage, and left out where n is 0: a batch tells by its shapes how often to think.
    """

    def __init__(self, task: ReasoningTask, tokenizer: Tokenizer, curriculum: Curriculum, rows: ThoughtRows) -> None:
        """Raises ValueError for a task without steps, and for a tokenizer without the special tokens."""
        check_reasoning(task)
        self._task, self._tokenizer, self._curriculum, self._rows = task, tokenizer, curriculum, rows
        shared = {field.name: getattr(rows, field.name) for field in dataclasses.fields(Rows)}
        self._examples = prompt_source(task, tokenizer, PromptRows(**shared))
        self._stage = 0
        self._markers = markers_of(tokenizer)

    def next(self, params: Any = None, step: int | None = None) -> Any:
        """The batch of a step, as `thought_batch` gives it but for `latent` [B, n]."""
        if step is None:
            raise ValueError("a curriculum needs to know the step: call next(params, step)")
        elements = self._examples.next(params, step)
        rendering = (self._rows.template, self._rows.system)
        chains = [encode_chain(self._task, self._tokenizer, each["example"], *rendering) for each in elements]
        self._stage = self._curriculum.stage(step)
        batch = self._batch(chains, step)
        first, thoughts = self._rows.first, self._curriculum.thoughts(self._stage)
        if not thoughts:
            return batch.replace(latent=None)
        return batch.replace(latent=batch.latent[:, first : first + thoughts], first=first)

    def _batch(self, chains: Sequence[Chain], step: int) -> TokenRows:
        """The arrays of the stage, `latent` [B, S] as `collate` gives it."""
        rows = self._rows
        fixed = {"first": rows.first, "length": rows.length}
        if rows.paired:
            thoughts = self._curriculum.thoughts(self._stage)
            ahead = announced(self._tokenizer, chains)
            return paired_batch(chains, thoughts, self._markers, announced=ahead, **fixed)
        # A draw belongs to a step, so that a resumed run repeats what would have been.
        rng = np.random.default_rng([rows.seed, rows.process_index, step]) if rows.mixed else None
        fixed["step_length"] = rows.step_length
        return thought_batch(chains, self._curriculum, self._markers, self._stage, rng=rng, **fixed)

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
        """How many examples were read here, prefetched ones included, and the last batch's stage and thoughts."""
        return self._examples.stats() | {"stage": self._stage, "thoughts": self._curriculum.thoughts(self._stage)}
