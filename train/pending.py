"""A step under way: what is kept of it until its metrics have come from the devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from store.objects import uploaded


@dataclasses.dataclass(frozen=True)
class Pending:
    """A step whose metrics are still on the device; when it began, and when it had its batch, whose samples took
    `sampled` FLOPs.
    """

    step: int
    started: float
    fetched: float
    batch: Any
    metrics: Any
    host: dict[str, float]
    sampled: int = 0


def save_bad_batch(workdir: Path, last: Pending, limit: int) -> str:
    """Keeps the batch for a post-mortem and says what happened."""
    path = workdir / f"bad_batch_{last.step + 1}.npz"
    leaves = jax.tree_util.tree_leaves_with_path(last.batch)
    arrays = {jax.tree_util.keystr(at, simple=True, separator="/"): np.asarray(leaf) for at, leaf in leaves}
    with uploaded(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return (
        f"loss or gradient was not finite in {limit} updates in a row, up to step {last.step + 1}; none of them was"
        f" applied. The last of these batches is saved in {path}. Lower optimizer.lr, or look at that batch"
    )


def caption(host: dict[str, float]) -> str:
    """What the progress bar shows beside the rate."""
    return f"reward {host['reward']:.3f}  tokens {host['completions/mean_length']:.1f}" if "reward" in host else ""
