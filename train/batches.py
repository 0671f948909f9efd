"""The one place that puts a batch on the devices of a mesh."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np

from data.sources.batch import Batch
from model.sharding import batch_parts, batch_sharding, replicated

B = TypeVar("B", bound=Batch)


def shardings(batch: B, mesh: jax.sharding.Mesh) -> B:
    """Where every array of a batch lies: rows are spread over the mesh, what they share is on each device."""
    rows = jax.tree.map(lambda x: batch_sharding(mesh), batch.replace(shared=None))
    return rows.replace(shared=jax.tree.map(lambda x: replicated(mesh), batch.shared))


def on_devices(batch: B, mesh: jax.sharding.Mesh | None, whole: bool = True) -> B:
    """The batch on the devices; arrays that lie there already stay.

    `whole`: every process has all rows, else its own share of them.
    """
    if mesh is None:
        return jax.device_put(batch)

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and (jax.process_count() == 1 or not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        shape = np.shape(x) if whole or sharding.is_fully_replicated else None
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), shape)

    return jax.tree.map(put, batch, shardings(batch, mesh))


def abstract(batch: B, mesh: jax.sharding.Mesh) -> B:
    """The shapes of a batch as `on_devices` spreads it; ValueError where its rows do not divide."""
    check_rows(batch.rows, None, mesh)
    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(shape, batch, shardings(batch, mesh))


def check_rows(rows: int, micro_batch: int | None, mesh: jax.sharding.Mesh | None) -> None:
    """Raises ValueError for batches that cannot be cut into micro-batches, or not be spread over the mesh."""
    parts, size = 1 if mesh is None else batch_parts(mesh), micro_batch or rows
    if rows > size and rows % size:
        raise ValueError(
            f"a batch of {rows} rows cannot be cut into micro-batches of {size}; set micro_batch to a divisor of {rows}"
        )
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} rows cannot be split evenly over mesh data x fsdp x expert = {parts}; choose"
            f" data.batch_size (or rl.prompts x rl.samples) as a multiple of {parts}, or another mesh"
        )
