"""What the heads of a layer read: functions of captured `attention.weights` [B, H, S, L]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis.pictures import Labels, heat_map, shown


class Read(NamedTuple):
    """The columns that are read most and their weights, [..., k] each, the most read first."""

    columns: jax.Array
    weights: jax.Array


def columns_read(weights: jax.Array, k: int = 1) -> Read:
    """The `k` columns that each query reads most: weights [..., S, L] -> [..., S, k] each.

    Raises ValueError for more columns than there are.
    """
    if not 1 <= k <= weights.shape[-1]:
        raise ValueError(f"k={k} of {weights.shape[-1]} columns: give 1 or more, and no more than there are")
    values, columns = jax.lax.top_k(weights, k)
    return Read(columns, values)


def share_by_kind(weights: jax.Array, kinds: jax.Array, count: int) -> jax.Array:
    """How much of its attention each query gives to each kind of column: weights [B, H, S, L], kinds [B, L] int
    (negative: no kind) -> [B, H, S, count].

    Raises ValueError for kinds of another shape.
    """
    if kinds.shape != (weights.shape[0], weights.shape[-1]):
        raise ValueError(f"kinds must be [B, L] = {(weights.shape[0], weights.shape[-1])}, found {kinds.shape}")
    member = jax.nn.one_hot(kinds, count, dtype=weights.dtype)
    return jnp.einsum("bhsl,blk->bhsk", weights, member)


def distance_read(weights: jax.Array, positions: jax.Array, key_positions: jax.Array) -> jax.Array:
    """How many tokens back each query looks, a mean by weight: [B, H, S, L], [B, S], [B, L] -> [B, H, S]."""
    back = (positions[:, :, None] - key_positions[:, None, :]).astype(weights.dtype)
    return jnp.einsum("bhsl,bsl->bhs", weights, back)


def entropy_read(weights: jax.Array) -> jax.Array:
    """How widely each query looks, in nats: 0 for one column; weights [..., L] -> [...]."""
    return -jax.scipy.special.xlogy(weights, weights).sum(-1)


def draw_head(weights: np.ndarray, texts: Sequence[str], title: str = "") -> Any:
    """A matplotlib figure of one head: weights [S, L] as queries by columns, with the tokens beside them."""
    names = [shown(text) for text in texts]
    if weights.shape != (len(texts), len(texts)):
        raise ValueError(f"weights must be [{len(texts)}, {len(texts)}] for as many tokens, found {weights.shape}")
    empty = [[" "] * len(texts)] * len(texts)
    return heat_map(np.asarray(weights), empty, Labels(names, names, title, "column that is read", "weight"))
