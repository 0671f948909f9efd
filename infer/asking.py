"""Questions put to a model, and what it answers: texts with what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data.chat import prompt_tokens
from data.sources.examples import Example
from data.tasks.base import Task
from data.thoughts import NO_ENDING, Ending
from data.tokenizers.base import Tokenizer, find_stop
from data.tokenizers.decoding import tail_of, text_of
from data.verify.pool import Judge
from infer.branches import Branches, open_branches
from infer.continuation import Continuation, empty_continuation
from infer.draft import Draft
from infer.recurrence import Recurrence
from infer.sampler import Rollout, generate
from infer.sampling import SamplingParams
from infer.thoughts import thoughts_of
from model.lm import Model, Params


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What is asked and who judges: `ending` are markers and thoughts that follow every question; `by` is a field of
    the examples, such as a difficulty, for each value of which accuracy (and mean depth) are reported too; `judge`
    scores the texts (None: the task, in workers of its own where it asks for them).

    A task with `parts(example, text)`, {name: whether this holds of a part of the answer}, has the share of each
    reported too. `template`, `system`: how strategies that write prompts of their own render them.
    """

    task: Task
    tokenizer: Tokenizer
    ending: Ending = NO_ENDING
    by: str = ""
    judge: Judge | None = None
    template: str = "none"
    system: str | None = None

    def prompt(self, text: str) -> list[int]:
        """The tokens of a question; ValueError where the tokenizer cannot produce them."""
        return prompt_tokens(self.tokenizer, text, self.template, self.system)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """N samples, each of the example that `example_of` [N] numbers.

    `texts` [N]; `logps` [N] summed over the policy's own tokens; `thought` [N] own tokens of the thought (0 without a
    thinking budget), `written` [N] the other own tokens, `forced` [N] tokens; `finished` [N]; `iterations` [N] of a
    recurrent model over all tokens, else None; `acceptance` of drafts.
    """

    texts: tuple[str, ...]
    example_of: np.ndarray
    logps: np.ndarray
    thought: np.ndarray
    written: np.ndarray
    forced: np.ndarray
    finished: np.ndarray
    iterations: np.ndarray | None = None
    acceptance: float | None = None

    @property
    def tokens(self) -> np.ndarray:
        """All tokens of each, forced ones included [N]."""
        return self.own + self.forced

    @property
    def own(self) -> np.ndarray:
        """Tokens of the policy's own in each [N]."""
        return self.thought + self.written

    def rows(self, numbers: np.ndarray) -> Candidates:
        """Some of them, in that order."""
        arrays = {name: value[numbers] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, texts=tuple(self.texts[n] for n in numbers), **arrays)


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Several sets of candidates as one, in their order."""
    first = parts[0]
    names = [name for name, value in vars(first).items() if isinstance(value, np.ndarray)]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    kept = [part.acceptance for part in parts if part.acceptance is not None]
    texts = tuple(text for part in parts for text in part.texts)
    return dataclasses.replace(first, texts=texts, acceptance=float(np.mean(kept)) if kept else None, **arrays)


def completion_texts(rollout: Rollout, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> list[str]:
    """The text that every sample adds to its prompt's, [N], cut before the first stop string of its answer."""
    asked = zip(rollout.prompts, rollout.prompt_mask, strict=True)
    prompts = [tail_of(row[mask.astype(bool)].tolist(), tokenizer) for row, mask in asked]
    rows = zip(rollout.tokens, rollout.lengths, rollout.group_of, strict=True)
    texts = [text_of(row[:length].tolist(), tokenizer, prompts[group]) for row, length, group in rows]
    if not stop:
        return texts
    answers = answer_offsets(rollout, tokenizer, prompts)
    return [text[:at] + text[at:][: find_stop(text[at:], stop)] for text, at in zip(texts, answers, strict=True)]


def answer_offsets(rollout: Rollout, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Where the answer of each sample's text begins [N]: at 0 where samples have no thinking budget."""
    if rollout.answer is None:
        return [0] * len(rollout.tokens)
    begins = np.where(rollout.answer < 0, rollout.lengths, np.minimum(rollout.answer, rollout.lengths))
    rows = zip(rollout.tokens, begins, rollout.group_of, strict=True)
    return [len(text_of(row[:begin].tolist(), tokenizer, prompts[group])) for row, begin, group in rows]


@dataclasses.dataclass(frozen=True)
class Asker:
    """A model with all that sampling takes but the questions and the key."""

    model: Model
    params: Params
    spec: TaskSpec
    sampling: SamplingParams
    recurrence: Recurrence | None = None
    draft: Draft | None = None

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        key: jax.Array,
        sampling: SamplingParams | None = None,
        *,
        continuation: Continuation | None = None,
        numbers: np.ndarray | None = None,
    ) -> Rollout:
        """Samples after prompts of tokens; each sample also ends at the tokenizer's end tokens.

        `numbers` [N]: whose noise each sample draws with (None: its own index).
        """
        asked = sampling or self.sampling
        if numbers is not None:
            start = continuation or empty_continuation(len(numbers), 1, np.repeat(np.arange(len(prompts)), asked.n))
            continuation = dataclasses.replace(start, number=numbers)
        return generate(
            self.model,
            self.params,
            [[*prompt, *self.spec.ending.tokens] for prompt in prompts],
            key,
            dataclasses.replace(asked, stop=(*self.spec.tokenizer.eos_ids, *asked.stop)),
            tokenizer=self.spec.tokenizer,
            recurrence=self.recurrence,
            draft=self.draft,
            thoughts=thoughts_of(self.spec.ending),
            continuation=continuation,
        )

    def branches(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams, continuation: Continuation
    ) -> Branches:
        """Samples of a continuation that go on from one another (infer/branches.py)."""
        if self.draft or sampling.budget:
            other = "a draft" if self.draft else "a thinking budget"
            raise ValueError(f"steps of a search are drawn one token at a time: they do not go with {other}")
        return open_branches(
            self.model,
            self.params,
            [[*prompt, *self.spec.ending.tokens] for prompt in prompts],
            dataclasses.replace(sampling, stop=(*self.spec.tokenizer.eos_ids, *sampling.stop)),
            continuation,
            tokenizer=self.spec.tokenizer,
            recurrence=self.recurrence,
            thoughts=thoughts_of(self.spec.ending),
        )

    def candidates(self, rollout: Rollout, example_of: np.ndarray | None = None) -> Candidates:
        """The samples of a rollout; `example_of` [P]: the example of each prompt (None: its number)."""
        own = rollout.mask.sum(1).astype(np.int64)
        thought = np.zeros_like(own) if rollout.thought is None else rollout.thought.astype(np.int64)
        return Candidates(
            tuple(completion_texts(rollout, self.spec.tokenizer, self.sampling.stop_strings)),
            rollout.group_of if example_of is None else np.asarray(example_of)[rollout.group_of],
            rollout.logps.sum(1),
            thought,
            own - thought,
            rollout.lengths - own,
            rollout.finished,
            None if rollout.depth is None else rollout.depth.sum(1),
            rollout.acceptance,
        )


def prompts_of(examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The prompts of examples as `fixed_examples` gives them."""
    return [example["tokens"] for example in examples]


def asked_of(examples: Sequence[dict[str, Any]], candidates: Candidates) -> list[Example]:
    """The task's example of each candidate [N]."""
    return [examples[number]["example"] for number in candidates.example_of]
