"""Recurrent depth in cached passes: every iteration has a slot of keys and values, and rows exit on their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.context import Context
from model.depth.core import (
    Depth,
    LayerReports,
    Look,
    Loop,
    Recurred,
    add_reports,
    at_iteration,
    mean_losses,
    pad_inactive_rows,
)
from model.depth.exit import CRITERIA
from model.depth.measures import change


def cached(
    step: Callable[[jax.Array, jax.Array, Context, Any], tuple[jax.Array, Any, LayerReports]],
    e: jax.Array,
    s: jax.Array,
    context: Context,
    states: Any,
    loop: Loop,
    look: Look,
    coda: Any,
) -> tuple[Recurred, jax.Array, Any]:
    """Runs the core on new columns of a cache, each row until its depth or its exit: (result, hidden, coda's states).

    `step(e, s, context, states)` is one iteration with its variables bound; `states` of the core's layers are
    [B, slots, ...]: iteration i reads and writes slot i mod slots.
    """
    depth, exit_ = jnp.broadcast_to(jnp.asarray(loop.depth), s.shape[:1]), loop.exit
    slots = jax.tree.leaves(states)[0].shape[1]
    even = exit_ is None and jnp.ndim(loop.depth) == 0
    shapes = jax.eval_shape(lambda: step(e, s, at_iteration(context, 0), _slot(states, jnp.int32(0)))[2])
    reports = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    criterion = None if exit_ is None else CRITERIA[exit_.criterion]
    hidden, logits = (jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(look, s, coda)[:2])
    memory = criterion.start(s, logits) if criterion else ()

    def once(carry: Any) -> Any:
        i, s, states, coda, hidden, reports, _, used, live, memory = carry
        active_context = at_iteration(context if even else pad_inactive_rows(context, live), i)
        new, written, reported = step(e, s, active_context, _slot(states, i % slots))
        states = _put(states, written, i % slots, None if even else live)
        new = new if even else jnp.where(live[:, None, None], new, s)
        used = used + live
        live = live & (used < depth)
        moved = change(new, s, active_context.segments)
        if criterion:
            hidden, logits, coda = look(new, coda)
            memory, leaves = criterion.look(memory, new, logits, context.segments > 0, exit_.limit)  # type: ignore[union-attr]
            live = live & ~leaves
        return i + 1, new, states, coda, hidden, add_reports(reports, reported, True), moved, used, live, memory

    used, live = jnp.zeros(s.shape[:1], jnp.int32), jnp.ones(s.shape[:1], bool)
    start = (jnp.int32(0), s, states, coda, hidden, reports, jnp.zeros((2,)), used, live, memory)
    end = jax.lax.while_loop(lambda carry: carry[8].any(), once, start)
    i, s, states, coda, hidden, reports, moved, used, _, _ = end
    if not criterion:
        hidden, _, coda = look(s, coda)
    result = Recurred(s, states, mean_losses(reports, jnp.maximum(i, 1)), used, moved)
    return result, hidden, coda


def fill_deeper(states: Any, used: jax.Array, index: jax.Array, columns: int) -> Any:
    """Copies each row's new keys and values of its last iteration, `used` [B], into the slots it did not reach.

    A later token that goes deeper then finds the deepest entry there is ("latest-m4" of section 6.1) without a search.
    Leaves are [B, slots, K, L, D].
    """

    def fill(leaf: jax.Array) -> jax.Array:
        new = jax.lax.dynamic_slice_in_dim(leaf, index, columns, 3)
        last = jnp.minimum(jnp.arange(leaf.shape[1]), used[:, None] - 1)
        return jax.lax.dynamic_update_slice_in_dim(
            leaf, jnp.take_along_axis(new, last[:, :, None, None, None], 1), index, 3
        )

    return jax.tree.map(fill, states)


def _slot(states: Any, slot: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 1, keepdims=False), states)


def _put(states: Any, new: Any, slot: jax.Array, live: jax.Array | None) -> Any:
    """Writes a slot, for the live rows alone."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        if live is not None:
            before = jax.lax.dynamic_index_in_dim(old, slot, 1, keepdims=False)
            new = jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, before)
        return jax.lax.dynamic_update_index_in_dim(old, new, slot, 1)

    return jax.tree.map(put, states, new)


def with_slots(state: Any, slots: int) -> Any:
    """An empty layer state [B, ...] once for every slot: [B, slots, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x[:, None], slots, 1), state)


def check_slots_suffice(config: ModelConfig, layers: Sequence[Any], depth: Depth) -> None:
    """Raises ValueError where a cache has fewer slots than iterations, and sharing them was not asked for."""
    slots = jax.tree.leaves(layers[config.recurrent.prelude])[0].shape[1]
    if isinstance(depth, int) and depth > slots and not config.recurrent.kv_slots:
        raise ValueError(
            f"depth={depth}, but the cache holds keys of {slots} iterations: make it with init_cache(..., depth=...),"
            " or let iterations share slots (recurrent.kv_slots)"
        )
