"""Rows to experts and back on a mesh: experts stay on their devices, and rows move."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.dispatch import (
    DISPATCHES,
    Expert,
    Result,
    Weights,
    count,
    from_rows,
    overflow,
    ranks,
    room_rows,
    seats,
    to_rows,
)
from model.linear import columns_to_rows, gathered, rows_to_columns
from model.platform import expert_dispatch
from model.remat import named
from model.routing import Routes
from model.sharding import activation_spec, axes_of, current_rules, partition_spec, varying

WEIGHT_AXES: dict[str, tuple[str, ...]] = {
    "gate": ("experts", "expert_embed", "mlp"),
    "up": ("experts", "expert_embed", "mlp"),
    "down": ("experts", "mlp", "expert_embed"),
    "gate_bias": ("experts", "mlp"),
    "up_bias": ("experts", "mlp"),
    "down_bias": ("experts", "expert_embed"),
}


def dispatch(
    choice: str,
    expert: Expert,
    weights: Weights,
    x: jax.Array,
    routes: Routes,
    factor: float = 0.0,
    whole: bool = False,
) -> Result:
    """x [B, S, D], routes [B, S, k] -> (the sum over a row's experts of gate x expert(x) [B, S, D], dropped).

    `choice` is a name in DISPATCHES, "expert_parallel", or "auto" (model/platform.py); `factor` the capacity factor;
    `whole`: an expert cannot work on some of a row's columns, `over` the mesh axes that have the others.
    """
    mesh = jax.sharding.get_abstract_mesh()
    name = expert_dispatch(choice, 1 if mesh.empty else mesh.size)
    if name == "expert_parallel" and not mesh.empty:
        return expert_parallel(expert, weights, x, routes, factor, whole)
    name = expert_dispatch() if name == "expert_parallel" else name
    flat, routes = _flat(x, routes)
    y, dropped = DISPATCHES[name](expert, weights, flat, routes, routes.experts.size / count(weights), factor)
    return y.reshape(x.shape), dropped


def expert_parallel(
    expert: Expert, weights: Weights, x: jax.Array, routes: Routes, factor: float, whole: bool = False
) -> Result:
    """`dispatch` over the current mesh: rows split like the batch, experts over "expert", their width over "tensor".

    Without a capacity factor every device of the expert axis is shown all rows of the axis, runs its own experts on
    them, and the sums are scattered back, which moves what an all-to-all padded to the worst case would move. With one,
    a device fills a buffer of ceil(f n k / E) rows per expert from its own n rows, and the buffers are exchanged by
    all-to-all (GShard, 2006.16668). Rows that cannot be split evenly stay whole and do not move. Experts that are split
    over the embedding too are gathered, or stay where they are if rows are few, as in `model.linear`. Raises ValueError
    where the experts cannot be split evenly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = mesh.shape["expert"]
    if count(weights) % parts:
        raise ValueError(
            f"{count(weights)} experts cannot be split evenly over a mesh whose expert axis is {parts}: choose a size"
            " that divides moe.n_experts"
        )
    rows = activation_spec(("batch", "length", None), x.shape)
    embed = axes_of(partition_spec(("expert_embed",)))
    # Only devices with rows of their own gather a weight's parts for each other; others are given it whole.
    shared = embed if set(embed) <= set(axes_of(rows)) else ()
    rules = current_rules() | {"expert_embed": shared or None}
    names = {name: partition_spec(WEIGHT_AXES[name], rules) for name in weights}
    stay = bool(shared) and not factor and not whole and _few(x, rows, shared)
    local = functools.partial(_local, Placement(axes_of(rows), parts, factor, shared, stay), expert)
    return jax.shard_map(local, in_specs=(names, rows, rows), out_specs=(rows, PartitionSpec()))(weights, x, routes)


class Placement(NamedTuple):
    """How rows and experts lie on a mesh: rows are split over `axes`, experts over `parts` devices.

    Each expert is split over `shared`, and is gathered there or stays (`stay`); `factor` is the capacity factor.
    """

    axes: tuple[str, ...]
    parts: int
    factor: float
    shared: tuple[str, ...]
    stay: bool

    @property
    def moves(self) -> bool:
        """Whether devices of the expert axis have rows of their own, which travel to the experts."""
        return "expert" in self.axes


def _local(place: Placement, expert: Expert, weights: Weights, x: jax.Array, routes: Routes) -> Result:
    """What one device does with its rows x [b, s, D] and its part of the experts."""
    axes, shared = place.axes, place.shared
    everywhere = tuple(dict.fromkeys((*axes, "expert", "tensor")))
    rows, (experts, gates) = _flat(x, routes)
    weights = {name: _marked(name, w, axes, shared) for name, w in weights.items()}
    rows, gates = varying((rows, gates), tuple(axis for axis in everywhere if axis not in axes))
    if place.stay:
        run = _by_columns
    else:
        run = _exchange if place.factor and place.moves else _in_place
        embed = {name: WEIGHT_AXES[name].index("expert_embed") for name in weights if _is_split(name)}
        weights |= {name: gathered(weights[name], shared, axis) for name, axis in embed.items()}
    y, dropped = run(place, expert, weights, rows, Routes(experts, gates))
    y = jax.lax.psum(y, "tensor").reshape(x.shape)
    return y, jax.lax.psum(dropped, everywhere[:-1])


def _is_split(name: str) -> bool:
    """Whether a weight's columns are split over the devices that share an expert."""
    return "expert_embed" in WEIGHT_AXES[name]


def _marked(name: str, weight: jax.Array, axes: tuple[str, ...], shared: tuple[str, ...]) -> jax.Array:
    """A weight as different on each device whose rows differ, where it is not by being split there."""
    own = (*(shared if _is_split(name) else ()), "expert")
    weight = varying(weight, tuple(axis for axis in axes if axis not in own))
    # What the devices of "tensor" give is summed: one of them adds the bias.
    return jnp.where(jax.lax.axis_index("tensor") == 0, weight, 0.0) if name == "down_bias" else weight


def _in_place(place: Placement, expert: Expert, weights: Weights, x: jax.Array, routes: Routes) -> Result:
    """This device's experts on all rows of the expert axis."""
    if place.moves:
        gather = lambda a: named(jax.lax.all_gather(a, "expert", tiled=True), "rows")  # noqa: E731
        x, routes = jax.tree.map(gather, (x, routes))
    mine = count(weights)
    experts = routes.experts - jax.lax.axis_index("expert") * mine
    local = (experts >= 0) & (experts < mine)
    own = Routes(jnp.where(local, experts, mine), jnp.where(local, routes.gates, 0.0))
    # In buffers of a fair share: sorted, the rows of all the others would need as much room as one's own.
    fair = experts.size / (mine * place.parts)
    y, dropped = DISPATCHES["capacity"](expert, weights, x, own, fair, place.factor)
    return (jax.lax.psum_scatter(y, "expert", tiled=True) if place.moves else jax.lax.psum(y, "expert")), dropped


def _few(x: jax.Array, spec: PartitionSpec, shared: tuple[str, ...]) -> bool:
    """Whether the rows x [B, S, D] of `shared` are fewer than columns, so that they are lighter than a weight."""
    sizes = jax.sharding.get_abstract_mesh().shape
    apart = math.prod(sizes[axis] for axis in axes_of(spec) if axis not in shared)
    return math.prod(x.shape[:2]) < apart * x.shape[-1]


def _by_columns(place: Placement, expert: Expert, weights: Weights, x: jax.Array, routes: Routes) -> Result:
    """Some columns of all rows of `shared`, for which this device has the weights."""
    shared = place.shared
    columns = rows_to_columns(x, shared)
    routes = jax.tree.map(lambda part: jax.lax.all_gather(part, shared, tiled=True), routes)
    # Blocks that spill are computed in step: devices that share a sum here have the same rows and experts.
    y, dropped = _in_place(place, functools.partial(expert, over=shared), weights, columns, routes)
    return columns_to_rows(y, shared), dropped


def _exchange(place: Placement, expert: Expert, weights: Weights, x: jax.Array, routes: Routes) -> Result:
    """Buffers for every expert out, buffers from every device in; and back."""
    n, k, width, mine, parts = *routes.experts.shape, x.shape[-1], count(weights), place.parts
    room = room_rows(n, n * k / (mine * parts), place.factor)
    rank, load = ranks(routes.experts, mine * parts)
    layout = seats(routes.experts, rank, mine * parts, room)
    swap = functools.partial(jax.lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0)
    rows = swap(to_rows(x, layout).reshape(parts, mine, room, width))
    rows = jax.vmap(expert)(weights, rows.swapaxes(0, 1).reshape(mine, -1, width))
    rows = swap(rows.reshape(mine, parts, room, width).swapaxes(0, 1))
    return from_rows(rows.reshape(-1, width), routes.gates, layout), overflow(load, room).sum()


def _flat(x: jax.Array, routes: Routes) -> tuple[jax.Array, Routes]:
    return x.reshape(-1, x.shape[-1]), Routes(*(part.reshape(-1, part.shape[-1]) for part in routes))
