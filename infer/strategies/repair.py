"""A generator and a verifier in a loop: the verifier's words stand in the next prompt, until an answer is right.

Source: Nvidia's loop for attention kernels with DeepSeek-R1 (2025), as specified without code: a closed loop under a
limit of time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data.verify.verdict import Verdict
from infer.asking import Asker, Candidates, asked_of, joined, prompts_of
from infer.strategies.base import Answers, Strategy, judging
from settings.strategies import Repair

Examples = Sequence[dict[str, Any]]


def repair(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """Attempts, one after the other, at the examples that are not solved yet; the last attempt answers."""
    options, started = strategy.options, time.monotonic()
    assert isinstance(options, Repair)
    one = dataclasses.replace(strategy.sampling, n=1)
    open_, prompts = np.arange(len(examples)), prompts_of(examples)
    parts, verdicts = list[Candidates](), list[Verdict]()
    with judging(strategy.spec) as judge:
        for attempt in range(options.attempts):
            drawn = key if attempt == 0 else jax.random.fold_in(key, attempt)
            part = asker.candidates(asker.rollout(prompts, drawn, one), open_)
            found = judge(asked_of(examples, part), part.texts)
            parts.append(part)
            verdicts += found
            wrong = [n for n, verdict in enumerate(found) if verdict.score < 1]
            late = options.minutes and time.monotonic() - started > 60 * options.minutes
            if not wrong or late or attempt == options.attempts - 1:
                break
            open_ = open_[wrong]
            prompts = [
                told(strategy, examples[int(e)], part.texts[n], found[n]) for e, n in zip(open_, wrong, strict=True)
            ]
    candidates = joined(parts)
    scores = np.array([verdict.score for verdict in verdicts])
    last = np.array([np.flatnonzero(candidates.example_of == e)[-1] for e in range(len(examples))])
    return Answers(candidates, last, scores, scores[last], tuple(verdicts), len(verdicts))


def told(strategy: Strategy, example: dict[str, Any], text: str, verdict: Verdict) -> list[int]:
    """The next prompt, with what was answered and what the verifier said; ValueError where it cannot be written."""
    options, spec = strategy.options, strategy.spec
    assert isinstance(options, Repair)
    question = spec.task.prompt(example["example"])
    try:
        # The answer is hostile text: it fills a field, and no field inside it is filled.
        words = options.feedback.format(prompt=question, answer=text, reason=verdict.reason)
        return spec.prompt(words)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"feedback={options.feedback!r} cannot be told in the next prompt: {error}; it may hold {{prompt}},"
            " {answer} and {reason}, as far as the tokenizer has their characters"
        ) from None
