"""What a checkpoint costs: how long a save holds the run up, how long it takes, what the sums of its files add."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from model import build
from store.checkpoint import Checkpoints
from store.manifest import FOLDER, damage, write_sums
from train.optimizer import make_optimizer
from train.state import TrainState, new_state

# 47 million parameters with the two moments of AdamW.
SIZES: dict[str, Any] = dict(vocab_size=512, d_model=768, n_layers=6, n_heads=12, d_ff=2304)


def timed(action: Callable[[], Any]) -> float:
    """Seconds an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def full_state() -> TrainState:
    """A state whose moments are as hard to compress as its parameters."""
    model = build(SIZES)
    params = model.init(jax.random.key(0))
    state = new_state(params, make_optimizer(lr=1e-3, axes=model.axes()), 0)
    noisy = lambda x: jax.random.normal(jax.random.key(1), x.shape, x.dtype) if x.dtype == jnp.float32 else x  # noqa: E731
    return replace(state, optimizer=jax.tree.map(noisy, state.optimizer))


def bench_checkpoint(repeats: int) -> dict[str, Any]:
    """Seconds, and seconds per GB of state, in one process and one folder; files are read from the system's cache.

    `stall`: until `save` returns; `save`: until the step is whole, its sums included; `sums` and `verify`: writing the
    list and comparing with it, timed by themselves; `restore`: `verify` not included.
    """
    state, seconds = full_state(), dict[str, list[float]]()
    gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    with tempfile.TemporaryDirectory(dir=".", prefix=".checkpoint-") as folder:
        run = Path(folder)
        checkpoints = Checkpoints(run, keep_last=1)
        for step in range(1, repeats + 2):
            one = jax.block_until_ready(replace(state, step=jnp.int32(step)))
            started = time.perf_counter()
            found = {"stall": timed(lambda one=one: checkpoints.save(one, {}))}  # type: ignore[misc]
            checkpoints.wait()
            found["save"] = time.perf_counter() - started
            at = run / FOLDER / str(step)
            found["sums"] = timed(lambda at=at: write_sums(at))  # type: ignore[misc]
            found["verify"] = timed(lambda step=step: damage(run, step))  # type: ignore[misc]
            found["restore"] = timed(lambda: jax.block_until_ready(checkpoints.restore(state)[0].params))
            for name, value in found.items() if step > 1 else ():
                seconds.setdefault(name, []).append(value)
        checkpoints.close()
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "gigabytes": round(gigabytes, 3),
        "seconds": {name: round(value, 3) for name, value in middle.items()},
        "seconds_per_gb": {name: round(value / gigabytes, 3) for name, value in middle.items()},
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in seconds.items()},
    }
