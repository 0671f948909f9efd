"""Layers run in order, one by one or as a loop over those that are alike."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.block import Block, rotations
from model.config import ModelConfig
from model.context import Context
from model.hooks import INTERMEDIATES, PATCHES, layer_captures, layer_patches
from model.remat import rematerialised
from model.reports import Reports
from model.sharding import constrain

LayersOutput = tuple[jax.Array, tuple[Any, ...], tuple[Reports, ...]]


def run_layers(
    config: ModelConfig,
    train: bool,
    variables: Any,
    layers: Sequence[int],
    x: jax.Array,
    context: Context,
    states: Sequence[Any],
    remat: str | None = None,
) -> LayersOutput:
    """x [B, S, D] through `layers`, with one state (or None) each -> (x, new states, what the layers report).

    `config.layers` "scanned" makes one program of all layers that are alike, for passes without a cache: the time to
    compile then does not grow with depth. Their weights are stacked on the way in, so parameters are a tree by layers
    either way.
    """
    patched = context.hooks is not None and bool(context.hooks.patches)
    scanned = config.layers == "scanned" and context.index is None and not patched
    slots = [tuple(config.per_layer(name)[i] for name in ("mixer", "ffn", "window")) for i in layers]
    groups = repeats(slots) if scanned else ((i, 1, 1) for i in range(len(layers)))
    new: list[Any] = []
    reports: list[Reports] = []
    for start, period, times in groups:
        chosen = layers[start : start + period * times]
        if times > 1:
            x, group_reports = _scan(config, train, variables, chosen, period, x, context, remat)
            new += [None] * len(chosen)
            reports += group_reports
            continue
        for i, state in zip(chosen, states[start : start + period], strict=True):
            block = rematerialised(functools.partial(_block, config, i, train), remat)
            x, state, report = block(_inputs_of(config, variables, context, i), x, context, state)
            new.append(state)
            reports.append(report)
    return x, tuple(new), tuple(reports)


def repeats(kinds: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """Cuts a sequence into (start, period, times), each a pattern of `period` entries that comes `times` times.

    Greedy: every piece is the one that leaves the fewest entries to write out.
    """
    start = 0
    while start < len(kinds):
        rest = kinds[start:]
        counted = ((period, _times(rest, period)) for period in range(1, len(rest) // 2 + 1))
        period, times = max(counted, key=lambda piece: (piece[0] * (piece[1] - 1), -piece[0]), default=(1, 1))
        if times == 1:
            period = 1
        yield start, period, times
        start += period * times


def _times(kinds: Sequence[Any], period: int) -> int:
    """How often the first `period` entries come in a row."""
    times = 1
    while kinds[times * period : (times + 1) * period] == kinds[:period]:
        times += 1
    return times


def _scan(
    config: ModelConfig,
    train: bool,
    variables: Any,
    layers: Sequence[int],
    period: int,
    x: jax.Array,
    context: Context,
    remat: str | None,
) -> tuple[jax.Array, list[Reports]]:
    """A loop over `layers`, `period` of them at a time."""
    inputs = [_inputs_of(config, variables, context, i) for i in layers]
    starts = range(0, len(layers), period)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tuple(inputs[i : i + period]) for i in starts))
    blocks = [rematerialised(functools.partial(_block, config, i, train), remat, True) for i in layers[:period]]

    def body(x: jax.Array, group: tuple[Any, ...]) -> tuple[jax.Array, list[Reports]]:
        reports = []
        x, tied = _tied(x, context)
        for i, block, (weights, routes) in zip(layers, blocks, group, strict=False):
            x, _, report = block((_as_declared(config, i, weights), routes), x, tied, None)
            reports.append(report)
        return x, reports

    x, reported = jax.lax.scan(body, x, stacked)
    return x, [jax.tree.map(lambda leaf, n=n: leaf[n], report) for n in range(len(starts)) for report in reported]


def _tied(x: jax.Array, context: Context) -> tuple[jax.Array, Context]:
    """Both as they are, but the columns known no sooner than x: masks made of them would otherwise be computed before
    the loop, all at once.
    """
    names = ("positions", "segments", "key_positions", "key_segments")
    x, *marks = jax.lax.optimization_barrier((x, *(getattr(context, name) for name in names)))
    return x, dataclasses.replace(context, **dict(zip(names, marks, strict=True)))


def _as_declared(config: ModelConfig, layer: int, variables: Any) -> Any:
    """A layer's variables, split over the mesh as they are outside a loop; so are then their gradients."""
    names = _declared(config, layer)
    split = lambda path, leaf: constrain(leaf, *names[path]) if path in names else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(split, variables)


@functools.lru_cache
def _declared(config: ModelConfig, layer: int) -> dict[Any, tuple[str | None, ...]]:
    """The logical axes of every variable that a layer declares, by path."""
    blank = jnp.zeros((1, 1), jnp.int32)
    rope = {turn: (jnp.zeros((1, 1, turn.width // 2)),) * 2 for turn in rotations(config)}
    context = Context(blank, blank, blank, blank, rope, None)
    x = jnp.zeros((1, 1, config.d_model), config.dtype)
    init = functools.partial(Block(config, layer, parent=None).init, jax.random.key(0))
    boxed = jax.eval_shape(init, x, context, None)
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    leaves = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]
    return {path: tuple(leaf.names) for path, leaf in leaves if is_box(leaf)}


def _inputs_of(config: ModelConfig, variables: Any, context: Context, layer: int) -> tuple[Any, Any]:
    """What is a layer's own: its variables, and the experts it is to take."""
    kinds = config.per_layer("ffn")
    routes = context.routes if kinds[layer] == "moe" else None
    routes = None if routes is None else routes[:, :, kinds[:layer].count("moe")]
    return {name: tree[f"layer_{layer}"] for name, tree in variables.items() if f"layer_{layer}" in tree}, routes


def _block(
    config: ModelConfig, layer: int, train: bool, inputs: tuple[Any, Any], x: jax.Array, context: Context, state: Any
) -> tuple[jax.Array, Any, Reports]:
    variables, routes = inputs
    context = context.replace(routes=routes)  # type: ignore[attr-defined]
    block = Block(config, layer, train, parent=None)
    if context.hooks is None:
        return block.apply(variables, x, context, state)  # type: ignore[return-value]
    variables = variables | {PATCHES: layer_patches(context.hooks, layer)}
    (x, state, reports), kept = block.apply(variables, x, context, state, mutable=[INTERMEDIATES])
    captured = layer_captures(context.hooks, kept[INTERMEDIATES], layer)
    return x, state, reports.replace(captured=captured)  # type: ignore[attr-defined]
