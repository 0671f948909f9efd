"""What pairs of one prompt cost by how they are read: each side with the prompt in front, or the prompt once for both.

Whole updates of DPO in turns; `ratio` is the time of rows apart over that of shared prompts. Where the answer is as
long as the prompt the tokens alone are 4 : 3.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from benchmarks.__main__ import MODEL
from benchmarks.strategies import Timed, in_turns
from model import build
from model.prefix import Prompts, prefill
from settings.preference import PreferenceLossConfig
from train.accumulate import UpdatePlan
from train.objectives.pairs import PairBatch
from train.objectives.preference import preference_objective
from train.optimizer import make_optimizer
from train.state import new_state
from train.step import make_step

PAIRS = 8


def bench_pairs(repeats: int) -> dict[str, Any]:
    """Ratios where the answer is as long as the prompt, and a quarter of it."""
    return {
        f"prompt_{prompt}_answer_{answer}": in_turns(
            *(timed(prompt, answer, shared) for shared in (False, True)), repeats
        )
        for prompt, answer in ((128, 128), (192, 48))
    }


def timed(prompt: int, answer: int, shared: bool) -> Timed:
    """An update of PAIRS pairs, without empty columns."""
    model = build(MODEL)
    plan = UpdatePlan()
    if shared:
        plan = UpdatePlan(read=lambda params, prompts, parts: prefill(model, params, prompts).share(parts))
    optimizer = make_optimizer(lr=1e-4, axes=model.axes())
    step = make_step(
        preference_objective(model, PreferenceLossConfig()), optimizer, plan=plan if shared else UpdatePlan()
    )
    state = [new_state(model.init(jax.random.key(0)), optimizer, 0)]
    batch = jax.device_put(pairs_of(prompt, answer))

    def once(turn: int) -> tuple[float, int]:
        started = time.perf_counter()
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - started, 2 * PAIRS * (prompt + answer)

    return once


def pairs_of(prompt: int, answer: int) -> PairBatch:
    """Random tokens."""
    rows, rng = 2 * PAIRS, np.random.default_rng(0)
    shape = (rows, answer)
    asked = rng.integers(1, 512, (PAIRS, prompt)).astype(np.int32)
    return PairBatch(
        tokens=rng.integers(1, 512, shape).astype(np.int32),
        mask=np.ones(shape, np.float32),
        shared=Prompts(tokens=asked, segments=np.ones_like(asked)),
        lengths=np.full(rows, answer, np.int32),
        prompt_of=np.repeat(np.arange(PAIRS, dtype=np.int32), 2),
        margin=np.zeros(rows, np.float32),
        ref_logps=np.zeros(shape, np.float32),
    )
