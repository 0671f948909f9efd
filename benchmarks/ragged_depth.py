"""What rows of different depths cost beside rows that share as many iterations: a training step, and decoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.depth import batch_of, medians
from data.sources.batch import TokenRows
from infer.recurrence import Recurrence
from infer.sampler import generate
from infer.sampling import Execution, SamplingParams
from model import Model, build
from train.accumulate import UpdatePlan
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer
from train.state import new_state
from train.step import make_step

DEEPEST, ROWS = 12, 64
CORE = {"prelude": 0, "core": 2, "coda": 0, "mean": DEEPEST, "grad_steps": DEEPEST, "start": "embedding"}
MODEL: dict[str, Any] = dict(vocab_size=512, d_model=192, n_heads=4, d_ff=512, max_length=256, n_layers=2)


def bench_ragged_depth(repeats: int, length: int = 64, new: int = 16) -> dict[str, Any]:
    """Milliseconds of 64 rows at depths from 1 to 12: in order, in micro-batches of 8 of like depth; mixed; and evenly,
    all rows at 6 or 7, which is as many iterations, in the same micro-batches. The same of samples in 16 slots.
    """
    model = build(MODEL | {"depth": "recurrent", "recurrent": CORE | {"injection": "add"}})
    params = jax.jit(model.init)(jax.random.key(0))
    mixed = np.random.default_rng(0).permutation(np.arange(ROWS) % DEEPEST + 1).astype(np.int32)
    even = np.full(ROWS, mixed.sum() // ROWS, np.int32)
    even[: mixed.sum() - even.sum()] += 1
    depths = {"in_order": np.sort(mixed), "mixed": mixed, "even": np.sort(even)}
    rows = batch_of(ROWS, length)
    steps = {name: training(model, params, rows.replace(depth=depth)) for name, depth in depths.items()}
    # Samples are seated in the order of their depths, however they are asked for.
    asked = {"ragged": mixed, "even": even}
    answers = {name: decoding(model, params, depth, new) for name, depth in asked.items()}
    found = {"training": medians(steps, repeats), "decoding": medians(answers, repeats)}
    return {
        "milliseconds": found,
        "training_over_even": round(found["training"]["in_order"] / found["training"]["even"], 3),
        "decoding_over_even": round(found["decoding"]["ragged"] / found["decoding"]["even"], 3),
        "iterations": int(mixed.sum()),
        "load": round(os.getloadavg()[0], 2),
    }


def training(model: Model, params: Any, batch: TokenRows) -> Callable[[], Any]:
    """One training step in micro-batches of eight rows, in place."""
    optimizer = make_optimizer(lr=1e-3, axes=model.axes())
    step = make_step(sft_objective(model), optimizer, plan=UpdatePlan(8))
    box = [new_state(jax.tree.map(lambda x: x.copy(), params), optimizer, 0)]

    def once() -> Any:
        box[0], metrics = step(box[0], batch)
        return metrics

    return once


def decoding(model: Model, params: Any, depth: np.ndarray, new: int) -> Callable[[], Any]:
    """Samples of prompts of eight tokens, each at its own depth, in 16 slots."""
    prompts = np.random.default_rng(1).integers(1, 512, (ROWS, 8)).tolist()
    sampling = SamplingParams(new, 0.0, execution=Execution(slots=16))
    recurrence = Recurrence(depth, DEEPEST)
    return lambda: generate(model, params, prompts, jax.random.key(0), sampling, recurrence=recurrence).tokens
