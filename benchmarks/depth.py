"""What depth costs: 32 iterations of one layer against 32 layers, and thoughts with keys kept against computed anew."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data.sources.batch import TokenRows
from model import Model, build
from model.latent import Columns, think
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer
from train.state import new_state
from train.step import make_step

SIZES: dict[str, Any] = dict(vocab_size=512, d_model=192, n_heads=4, d_ff=512, max_length=256)
DEPTH = 32
CORE = {"prelude": 0, "core": 1, "coda": 0, "mean": DEPTH, "injection": "add"}
MODELS: dict[str, dict[str, Any]] = {
    "stack_of_32": {"n_layers": DEPTH},
    "stack_of_32_remat": {"n_layers": DEPTH, "remat": "full"},
    "recurrent_32_with_gradient": {"n_layers": 1, "depth": "recurrent", "recurrent": CORE | {"grad_steps": DEPTH}},
    "recurrent_8_with_gradient": {"n_layers": 1, "depth": "recurrent", "recurrent": CORE | {"grad_steps": 8}},
}
THOUGHTS = 6


def batch_of(rows: int, length: int) -> TokenRows:
    """Random tokens, all wanted."""
    tokens = np.random.default_rng(0).integers(1, 512, (rows, length)).astype(np.int32)
    positions, ones = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape), np.ones_like(tokens)
    return TokenRows(tokens=tokens, mask=ones.astype(np.float32), positions=positions, segments=ones)


def training(model: Model, batch: TokenRows) -> tuple[Callable[[], Any], dict[str, float]]:
    """One training step, in place, and what compiling it took and found: seconds, temporary megabytes."""
    optimizer = make_optimizer(lr=1e-3, axes=model.axes())
    state = new_state(jax.jit(model.init)(jax.random.key(0)), optimizer, 0)
    step = make_step(sft_objective(model), optimizer)
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    found = {"compile_seconds": round(time.perf_counter() - started, 1)}
    found["temporary_mb"] = round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1)
    box = [state]

    def once() -> Any:
        box[0], metrics = compiled(box[0], batch)
        return metrics

    return once, found


def thinking(first: int | None, rows: Columns) -> Callable[[], Any]:
    """Forward and backward through six thoughts, keys kept from column `first` on, or (None) computed anew."""
    model = build(SIZES | {"n_layers": 4})
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(params: Any) -> jax.Array:
        return (think(model, params, rows, thoughts=THOUGHTS, first=first).hidden ** 2).mean()

    run = jax.jit(jax.grad(loss))
    return lambda: run(params)


def medians(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each run, in turns, after one call that compiles."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: round(float(np.median(found)), 1) for name, found in times.items()}


def bench_depth(repeats: int, rows: int = 8, length: int = 128) -> dict[str, Any]:
    """Milliseconds and memory of a training step at equal depth, and of a step through thoughts."""
    batch = batch_of(rows, length)
    built = {name: training(build(SIZES | changes), batch) for name, changes in MODELS.items()}
    steps = medians({name: run for name, (run, _) in built.items()}, repeats)
    latent = np.zeros((rows, length), bool)
    latent[:, length - 8 - THOUGHTS : length - 8] = True
    thoughts = Columns(batch.tokens, batch.positions, batch.segments, latent)
    ways = {"keys_kept": thinking(length - 8 - THOUGHTS, thoughts), "recomputed": thinking(None, thoughts)}
    return {
        "training": {name: {"milliseconds": steps[name], **found} for name, (_, found) in built.items()},
        "thoughts": {"milliseconds": medians(ways, repeats), "thoughts": THOUGHTS, "columns": length},
        "load": round(os.getloadavg()[0], 2),
    }
