"""Where tokens become vectors and vectors logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.config import ModelConfig
from model.linear import linear
from model.sharding import activation_spec, axes_of, varying


def embed_tokens(config: ModelConfig, tables: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Token ids [B, S] -> scaled embeddings [B, S, D] in the compute dtype, of pairs those of both tokens added."""
    size = config.vocab_size
    first = jnp.where(tokens < size, tokens, (tokens - size) // size) if config.pairs else tokens
    x = look_up(tables["embed"], "vocab", first, config.dtype)
    if config.pairs:
        second = look_up(tables["pair_embed"], "vocab", (tokens - size) % size, config.dtype)
        x = x + jnp.where((tokens < size)[..., None], 0, second)
    return x * jnp.asarray(config.embed_scale, config.dtype)


def look_up(table: jax.Array, rows: str, indices: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table [rows, D] at indices [B, S] -> [B, S, D], split over a mesh like any other activation.

    A table stays where it is: of every token in its group a device reads the columns (and those of the rows) that it
    has, and an exchange turns columns of many tokens into whole rows of its own.
    """
    take = lambda table, indices: jnp.take(table, indices, axis=0, mode="clip").astype(dtype)  # noqa: E731
    if jax.sharding.get_abstract_mesh().empty:
        return take(table, indices)
    marks = activation_spec(("batch", "length"), indices.shape)
    height, width = (axes_of((entry,)) for entry in activation_spec((rows, "embed"), table.shape))
    mine = axes_of((marks[0],))
    # Columns can be exchanged for rows only among devices that differ in rows; parts of the rows are summed otherwise.
    width = width if set(width) <= set(mine) else ()
    height = height if set(axes_of(marks)).isdisjoint(height) else ()

    def local(table: jax.Array, indices: jax.Array) -> jax.Array:
        table = varying(table, [axis for axis in axes_of(marks) if axis not in width])
        every = jax.lax.all_gather(indices, width, axis=0, tiled=True) if width else indices
        at = every - jax.lax.axis_index(height) * len(table) if height else every
        rows_found = take(table, at)
        if height:
            rows_found = jax.lax.psum(jnp.where(((at >= 0) & (at < len(table)))[..., None], rows_found, 0), height)
        return jax.lax.all_to_all(rows_found, width, 0, 2, tiled=True) if width else rows_found

    specs = (PartitionSpec(height or None, width or None), marks)
    return jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(*marks, None))(table, indices)


def head_logits(config: ModelConfig, table: jax.Array, hidden: jax.Array) -> jax.Array:
    """hidden [..., D] and the output embedding [V, D] -> logits [..., V], fp32."""
    weights = table.astype(config.dtype)
    if jax.sharding.get_abstract_mesh().empty:
        logits = jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)
    else:
        rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        logits = linear(rows, weights.T, ("embed", "vocab"), "high", jnp.float32).reshape(*hidden.shape[:-1], -1)
    return logits * config.logit_scale
