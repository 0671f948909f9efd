"""What strategies cost beside their tokens: budget forcing, samples of one prompt, beams; and what they compile.

Each pair runs in turns within one process; `ratio` is the median over turns of the time per token of the first, divided
by that of the second. The model has random weights; one token in a hundred ends a sample.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.__main__ import MODEL
from data.tasks.addition import Addition
from data.tokenizers.characters import CharTokenizer
from infer.asking import Asker, TaskSpec
from infer.budget import Budget, Delimiters
from infer.sampler import compilations
from infer.sampling import Execution, SamplingParams
from infer.strategies import answer, build_strategy
from model import build

PROMPTS, SAMPLES, NEW = 8, 8, 96
Timed = Callable[[int], tuple[float, int]]  # turn -> (seconds, tokens drawn)


def in_turns(first: Timed, second: Timed, repeats: int) -> dict[str, Any]:
    """The ratio of their times per token, after a turn of both that compiles."""
    ratios, microseconds = [], {"first": [], "second": []}
    for turn in range(repeats + 1):
        costs = [seconds / tokens for seconds, tokens in (first(turn), second(turn))]
        if turn:
            ratios.append(costs[0] / costs[1])
            for name, cost in zip(microseconds, costs, strict=True):
                microseconds[name].append(1e6 * cost)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "us_per_token": {name: round(statistics.median(costs), 1) for name, costs in microseconds.items()},
    }


def bench_strategies(repeats: int) -> dict[str, Any]:
    """Ratios of times per token, and the programs compiled beyond those of plain sampling."""
    tokenizer = CharTokenizer()
    model = build(MODEL | {"vocab_size": tokenizer.vocab_size, "max_length": 256})
    params = jax.jit(model.init)(jax.random.key(0))
    spec = TaskSpec(Addition(), tokenizer)
    prompts = [tokenizer.encode(f"{n}{n + 1}+{n + 2}{n}=") for n in range(1, PROMPTS + 1)]
    examples = [{"tokens": prompt, "example": {"a": 1, "b": 2, "think": False}} for prompt in prompts]
    plain = SamplingParams(NEW, n=SAMPLES, execution=Execution(slots=PROMPTS * SAMPLES))
    asker = Asker(model, params, spec, plain)

    def sampled(sampling: SamplingParams, asked: list[list[int]] = prompts) -> Timed:
        def timed(turn: int) -> tuple[float, int]:
            started = time.perf_counter()
            rollout = asker.rollout(asked, jax.random.key(turn), sampling)
            return time.perf_counter() - started, int(rollout.lengths.sum())

        return timed

    def budget(most: int, waits: int) -> SamplingParams:
        marks = Delimiters("", "</think>", "</think>")
        return SamplingParams(NEW, n=SAMPLES, budget=Budget(most, waits, marks), execution=plain.execution)

    def beam(turn: int) -> tuple[float, int]:
        options: dict[str, Any] = {"width": 8, "expand": 1, "step_tokens": NEW // 4, "separator": "\n"}
        strategy = build_strategy("beam", spec, SamplingParams(NEW), **options)
        found = answer(strategy, model, params, examples, jax.random.key(turn))
        return found.seconds, int(found.written.sum())

    found = {"budget forcing / plain": in_turns(sampled(budget(48, 1)), sampled(plain), repeats)}
    alone = SamplingParams(NEW, execution=plain.execution)
    each = [prompt for prompt in prompts for _ in range(SAMPLES)]
    found["n samples of a prompt / as many prompts"] = in_turns(sampled(plain), sampled(alone, each), repeats)
    before = compilations()
    for number, (most, waits) in enumerate(((8, 0), (16, 0), (32, 1), (64, 2), (24, 3))):
        sampled(budget(most, waits))(number)
    programs = {"five further budgets and waits": compilations() - before}
    found["beam of 8 / 8 samples"] = in_turns(beam, sampled(plain), repeats)
    before = compilations()
    beam(99)
    return found | {"programs": programs | {"a further beam": compilations() - before}}
