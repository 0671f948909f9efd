"""A language model as the judge of pairs: which of two answers is better, asked in both orders (2212.08073)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data.chat import prompt_tokens
from data.sources.examples import Example
from data.tokenizers.build import check_vocab
from data.tokenizers.decoding import encode_after
from infer.scoring import score
from train.setup import Setup

# (example, one text, another) -> the probability that the one is better, shown first and shown second
Opinion = Callable[[Sequence[tuple[Example, str, str]]], tuple[np.ndarray, np.ndarray]]


def judge_of_pairs(setup: Setup) -> Opinion:
    """The model in `pairs.judge`, which may have another tokenizer; its parameters are read at the first call.

    Raises ValueError for a model of scores, and for options that begin with the same token.
    """
    rules, task = setup.config.pairs, setup.task
    origin = setup.open(rules.judge)
    if origin.model.config.score.size:
        raise ValueError(f"pairs.judge={rules.judge} holds a model of scores: use the stage `score`, then by=score")
    tokenizer = check_vocab(origin.tokenizer(), origin.model.config.vocab_size, origin.model.config.pairs)
    if len({tuple(tokenizer.encode(option)) for option in rules.options}) < 2:
        raise ValueError(
            f"pairs.options={rules.options} are the same tokens for the judge: choose two it can tell apart"
        )

    def prompt(example: Example, first: str, second: str) -> list[int]:
        text, given = rules.template, {"{prompt}": task.prompt(example), "{first}": first, "{second}": second}
        pieces = _split(text, list(given))
        return prompt_tokens(tokenizer, "".join(given.get(piece, piece) for piece in pieces))

    def opinions(pairs: Sequence[tuple[Example, str, str]]) -> tuple[np.ndarray, np.ndarray]:
        params = origin.params(setup.mesh)
        asked = [prompt(example, *sides) for example, a, b in pairs for sides in ((a, b), (b, a))]
        prompts = [ids for ids in asked for _ in rules.options]
        answers = [encode_after(option, tokenizer, ids) for ids in asked for option in rules.options]
        logps = score(origin.model, params, prompts, answers).logps.sum(1).reshape(len(pairs), 2, 2)
        first = 1 / (1 + np.exp(logps[..., 1] - logps[..., 0]))  # that the one shown first is better
        return first[:, 0], 1 - first[:, 1]

    return opinions


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """The text in pieces, its marks by themselves: what is put in for one may hold another."""
    for mark in marks:
        if mark in text:
            front, _, rest = text.partition(mark)
            return [*_split(front, marks), mark, *_split(rest, marks)]
    return [text]
