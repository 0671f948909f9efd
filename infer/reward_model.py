"""Reward models at work: scores of texts, and of the steps of solutions, by a frozen model on the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.chat import render_prompt
from data.sources.examples import Example
from data.tokenizers.base import Tokenizer
from data.tokenizers.build import check_vocab
from data.tokenizers.decoding import encode_after
from infer.asking import TaskSpec
from infer.load import Origin, open_origin
from infer.sampler import bucket
from infer.sampling import at_least
from infer.waves import devices
from model.lm import Model, Params
from model.sharding import on_mesh, replicate

BATCH = 32
# From the probabilities of a solution's steps to one number (2305.20050 takes the product, Math-Shepherd the least).
AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "min": lambda steps: float(steps.min()),
    "product": lambda steps: float(steps.prod()),
    "last": lambda steps: float(steps[-1]),
    "mean": lambda steps: float(steps.mean()),
}


@dataclass
class RewardModel:
    """A frozen model of scores; its parameters are read at the first call. Texts are encoded by its own tokenizer."""

    model: Model
    tokenizer: Tokenizer
    load: Callable[[], Params]
    mesh: jax.sharding.Mesh | None = None
    batch: int = BATCH
    params: Params | None = None

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The score [N] of each text after its prompt, with the end token behind it; of a model of several classes the
        log-odds of the last one.
        """
        rows = [self._ids(*pair) for pair in zip(prompts, texts, strict=True)]
        scores = self.at_places(rows, [[len(row) - 1] for row in rows])
        found = np.stack([each[0] for each in scores])
        return found[:, 0] if found.shape[1] == 1 else _log_odds(found)

    def steps(self, prompts: Sequence[str], texts: Sequence[str], separator: str = "\n") -> list[np.ndarray]:
        """The probability of the last class (right) for every step of each text; a text without a separator is one.

        Raises ValueError for a model of fewer than two scores.
        """
        if self.model.config.score.size < 2:
            raise ValueError("steps are scored by a model of two classes or more (algorithm=process_reward)")
        rows, places = [], []
        for prompt, text in zip(prompts, texts, strict=True):
            ids = self._begin(prompt)
            mark, ends = self.tokenizer.encode(separator), []
            for step in text.removesuffix(separator).split(separator):
                ids += [*encode_after(step, self.tokenizer, ids), *mark]
                ends.append(len(ids) - 1)
            rows.append(ids)
            places.append(ends)
        return [1 / (1 + np.exp(-_log_odds(found))) for found in self.at_places(rows, places)]

    def at_places(self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The scores [k, n] of rows of token ids at k places of each, many rows at a time.

        Raises ValueError for rows that do not fit the model's context.
        """
        room = self.model.config.max_length
        longest = max(map(len, rows))
        if longest > room:
            raise ValueError(
                f"a text of {longest} tokens does not fit the reward model's context of {room}: score shorter ones, or"
                " another reward model"
            )
        if self.params is None:
            self.params = self.load()
        return on_mesh(self.mesh)(self._at_places)(rows, places)

    def _at_places(self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(rows)
        order, parts = np.argsort([-len(row) for row in rows], kind="stable"), devices()
        size = -(-min(self.batch, len(rows)) // parts) * parts
        for first in range(0, len(rows), size):
            numbers = order[first : first + size]
            width = bucket(len(rows[numbers[0]]))
            tokens = np.zeros((2, size, width), np.int32)
            for row, number in enumerate(numbers):
                tokens[:, row, : len(rows[number])] = rows[number], np.ones(len(rows[number]))
            scores = np.asarray(_scores(self.model, self.params, jnp.asarray(tokens[0]), jnp.asarray(tokens[1])))
            for row, number in enumerate(numbers):
                found[number] = scores[row, list(places[number])]
        return found

    def _ids(self, prompt: str, text: str) -> list[int]:
        begun = self._begin(prompt)
        ids = [*begun, *encode_after(text, self.tokenizer, begun), self.tokenizer.eos_id]
        pad = self.model.config.score.pad
        while len(ids) > 1 and ids[-1] == pad:
            ids.pop()
        return ids

    def _begin(self, prompt: str) -> list[int]:
        bos, ids = self.tokenizer.bos_id, self.tokenizer.encode(prompt)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def open_reward_model(
    folder: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    *,
    batch: int = BATCH,
    opened: Callable[[str], Origin] = open_origin,
) -> RewardModel:
    """The reward model in a run directory or a Hub folder, of which no array is read yet.

    Raises FileNotFoundError where there is none, and ValueError for a language model.
    """
    at_least("batch", batch, 1)
    origin = opened(str(folder))
    if not origin.model.config.score.size:
        raise ValueError(
            f"{folder} holds a language model, which gives no scores: name a run of algorithm=reward or process_reward,"
            " or a folder of a ...ForSequenceClassification or ...ForTokenClassification"
        )
    tokenizer = check_vocab(origin.tokenizer(), origin.model.config.vocab_size, origin.model.config.pairs)
    return RewardModel(origin.model, tokenizer, lambda: origin.params(mesh), mesh, batch)


def strategy_reward(reward: RewardModel, spec: TaskSpec) -> Callable[[Sequence[Example], Sequence[str]], np.ndarray]:
    """The reward model as strategies call it: (examples [N], texts [N]) -> scores [N]."""

    def score(examples: Sequence[Example], texts: Sequence[str]) -> np.ndarray:
        asked = [spec.task.prompt(example) for example in examples]
        return reward([render_prompt(spec.tokenizer, text, spec.template, spec.system) for text in asked], texts)

    return score


def _log_odds(scores: np.ndarray) -> np.ndarray:
    """Of the last class against all others: [k, n] -> [k]."""
    return scores[:, -1] - np.logaddexp.reduce(scores[:, :-1], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Model, params: Params, tokens: Any, segments: Any) -> jax.Array:
    """Scores [B, S, n] of right-padded rows."""
    return replicate(model.scores(params, model.apply(params, tokens, segments=segments).hidden))
