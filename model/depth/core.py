"""The recurrent core as a function of its weights, and what every loop over it takes and returns.

A pass of the core is a function step(weights, e, s, context, states) -> (s, states, reports) of the prelude's output e
and the state s, [B, S, D] each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.context import Context
from model.depth.exit import Exit
from model.reports import Reports

LayerReports = tuple[Reports, ...]  # one per layer of the core
Step = Callable[[Any, jax.Array, jax.Array, Context, Any], tuple[jax.Array, Any, LayerReports]]
Depth = int | jax.Array  # of all rows, or [B]
# Looks at a state: (final hidden [B, S, D], logits [B, V] of the last column, the coda's states).
Look = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array, Any]]


class Loop(NamedTuple):
    """How the core runs in one pass: how deep, from which state [B, S, D] (NaN, or None: its own), and until when."""

    depth: Depth
    key: jax.Array | None = None
    state: jax.Array | None = None
    exit: Exit | None = None


@flax.struct.dataclass
class Recurred:
    """What a loop leaves: the state [B, S, D], the core's cache, its reports, the iterations of every row [B], and
    (sum, count) of ||s_i - s_{i-1}|| / ||s_i|| over the tokens at the last iteration.
    """

    state: jax.Array
    states: Any
    reports: LayerReports
    depth: jax.Array
    change: jax.Array


def pad_inactive_rows(context: Context, active: jax.Array) -> Context:
    """The context in which the rows that are not active hold padding, so that nothing counts them."""
    return context.replace(segments=jnp.where(active[:, None], context.segments, 0))  # type: ignore[attr-defined]


def at_iteration(context: Context, iteration: jax.Array | int) -> Context:
    """The context of an iteration ([B]: one of each row); as it is where nothing is captured or replaced."""
    if context.hooks is None:
        return context
    return context.replace(hooks=context.hooks.replace(iteration=iteration))  # type: ignore[attr-defined]


def add_reports(total: LayerReports, new: LayerReports, losses: bool) -> LayerReports:
    """Reports of another iteration added to those before; terms of the objective only where they carry gradient."""
    if losses:
        return jax.tree.map(jnp.add, total, new)
    kept = [layer.losses for layer in total]
    total, new = (tuple(dataclasses.replace(layer, losses={}) for layer in layers) for layers in (total, new))
    added = jax.tree.map(jnp.add, total, new)
    return tuple(dataclasses.replace(layer, losses=old) for layer, old in zip(added, kept, strict=True))


def mean_losses(reports: LayerReports, iterations: jax.Array | int) -> LayerReports:
    """Sums stay sums over iterations; terms of the objective become means, and weigh what they do in a stack."""
    share = lambda value: value / iterations  # noqa: E731
    return tuple(dataclasses.replace(layer, losses=jax.tree.map(share, layer.losses)) for layer in reports)


def layers_of(config: ModelConfig) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The numbers of the layers of prelude, core and coda."""
    r, n = config.recurrent, config.n_layers
    return range(r.prelude), range(r.prelude, n - r.coda), range(n - r.coda, n)
