"""The ways to control how long a model thinks that s1 compares budget forcing with (2501.19393, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from infer.asking import Asker, Candidates, joined, prompts_of
from infer.strategies.base import Answers, Strategy, plain_answers
from settings.strategies import ClassConditional, Rejection, StepConditional, TokenConditional

Examples = Sequence[dict[str, Any]]


def reject(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """Draws again until an answer has at most `longest` tokens; where none has, the shortest answers."""
    options, prompts = strategy.options, prompts_of(examples)
    assert isinstance(options, Rejection)
    one = dataclasses.replace(strategy.sampling, n=1)
    waiting, parts = np.arange(len(examples)), list[Candidates]()
    for attempt in range(options.attempts):
        numbers = waiting * options.attempts + attempt
        rollout = asker.rollout([prompts[e] for e in waiting], key, one, numbers=numbers)
        parts.append(asker.candidates(rollout, waiting))
        waiting = waiting[~short_enough(parts[-1], options.longest)]
        if not len(waiting):
            break
    candidates = joined(parts)
    lengths, chosen = candidates.own, np.zeros(len(examples), int)
    for e in range(len(examples)):
        rows = np.flatnonzero(candidates.example_of == e)
        chosen[e] = rows[np.argmin(np.where(candidates.finished[rows], lengths[rows], np.iinfo(lengths.dtype).max))]
    notes = {int(e): f"no answer of {options.attempts} had at most {options.longest} tokens" for e in waiting}
    return Answers(candidates, chosen, -lengths.astype(float), -lengths[chosen].astype(float), notes=notes)


def short_enough(candidates: Candidates, longest: int) -> np.ndarray:
    """Which candidates have ended within so many tokens [N]."""
    return candidates.finished & (candidates.own <= longest)


def instructed(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """Plain sampling, with a sentence before the question that says how long to think."""
    front, spec = instruction(strategy), strategy.spec
    prompts = [spec.prompt(front + spec.task.prompt(example["example"])) for example in examples]
    rollout = asker.rollout(prompts, key)
    return dataclasses.replace(plain_answers(asker.candidates(rollout)), every=True)


def instruction(strategy: Strategy) -> str:
    """What stands before the question; ValueError for one that does not name the bound."""
    options = strategy.options
    if isinstance(options, ClassConditional):
        return options.short if options.length == "short" else options.long
    assert isinstance(options, TokenConditional)
    steps = -(-options.bound // options.tokens_per_step) if isinstance(options, StepConditional) else 0
    try:
        text = options.instruction.format(bound=options.bound, steps=steps)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"instruction={options.instruction!r} may hold {{bound}} and {{steps}}: {error}") from None
    if text == options.instruction:
        raise ValueError(f"instruction={options.instruction!r} names no bound: write {{bound}} or {{steps}} into it")
    return text
