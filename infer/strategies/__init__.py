"""Compute at test time: ways to answer with more than one plain sample, all of them on the one sampler.

    strategy = build_strategy("majority", TaskSpec(task, tokenizer), SamplingParams(64, n=8))
    answers = answer(strategy, model, params, examples, jax.random.key(0))

docs/test_time.md says which there are, what they cost, and where they come from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from infer.asking import Asker
from infer.strategies.base import Answers, Strategy, asker_of, build_strategy
from infer.strategies.choose import best, sample, vote
from infer.strategies.controls import instructed, reject
from infer.strategies.programs import cluster
from infer.strategies.repair import repair
from infer.strategies.search import beam
from model.lm import Model, Params
from settings.strategies import STRATEGIES

__all__ = ["METHODS", "STRATEGIES", "Answers", "Strategy", "answer", "build_strategy"]

Method = Callable[[Strategy, Asker, Sequence[dict[str, Any]], jax.Array], Answers]

METHODS: dict[str, Method] = {
    "sample": sample,
    "budget": sample,
    "majority": vote,
    "best_of_n": best,
    "clusters": cluster,
    "rejection": reject,
    "token_conditional": instructed,
    "step_conditional": instructed,
    "class_conditional": instructed,
    "beam": beam,
    "repair": repair,
}


def answer(
    strategy: Strategy, model: Model, params: Params, examples: Sequence[dict[str, Any]], key: jax.Array
) -> Answers:
    """An answer to each example, as `fixed_examples` gives them, and what it cost.

    Raises ValueError without examples, and for what the strategy, the model or the tokenizer cannot do.
    """
    if not examples:
        raise ValueError("there are no examples to answer: ask for at least 1")
    started = time.perf_counter()
    found = METHODS[strategy.name](strategy, asker_of(strategy, model, params), examples, key)
    return dataclasses.replace(found, seconds=time.perf_counter() - started)
