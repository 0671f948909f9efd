"""Linear maps over a mesh: a kernel split over the devices that share out the rows comes to the rows, or they to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.precision import PRECISIONS, dot
from model.remat import GATHERED, named
from model.sharding import activation_spec, axes_of, varying

Axes = tuple[str, ...]


class Split(NamedTuple):
    """Over which mesh axes a product x [B, S, K] @ kernel [K, N] is split.

    `rows`: B and S; `inner` and `outer`: K and N; `shared`: those of B among the kernel's, all in `inner` or `outer`.
    """

    rows: PartitionSpec
    inner: Axes
    outer: Axes
    shared: Axes


def linear(x: jax.Array, kernel: jax.Array, axes: Sequence[str], precision: str, dtype: Any = None) -> jax.Array:
    """x [B, S, K] @ kernel [K, N] -> [B, S, N] of `dtype` (None: x's), as `dot`; `axes` name the kernel's K and N.

    Where the kernel is split over mesh axes over which rows are split too (FSDP), each device gathers it, multiplies
    its rows, and keeps its part of the summed gradient (ZeRO-3, 1910.02054). Of few rows, as in decoding, the kernel
    stays and the rows travel (the weight-stationary layout of 2211.05102, section 3.2). All else is left to XLA, as
    are quantised products, whose blocks may not be cut.
    """
    split = _split(x.shape, kernel.shape, axes)
    dtype = dtype or x.dtype
    if not split.shared or PRECISIONS[precision].quantized:
        return dot(x, kernel, precision, dtype=dtype)
    rows, inner, outer, shared = split
    others = [axis for axis in axes_of(rows) if axis not in shared]
    kept = lambda part: None if part == shared else part or None  # noqa: E731

    def local(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = varying(kernel.astype(x.dtype), others)
        few = math.prod(x.shape[:2]) < kernel.shape[int(outer == shared)]
        y = (_rows_travel if few else _kernel_travels)(shared, inner == shared, dtype, x, kernel)
        return jax.lax.psum(y, inner) if kept(inner) else y

    specs = PartitionSpec(*rows, kept(inner)), PartitionSpec(inner or None, outer or None)
    return jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(*rows, kept(outer)))(x, kernel)


def gathered(weight: jax.Array, axes: Axes, axis: int) -> jax.Array:
    """Inside `shard_map`: a weight whole along `axis`, which `axes` split; its gradient is summed and split again."""
    return named(jax.lax.all_gather(weight, axes, axis=axis, tiled=True), GATHERED) if axes else weight


def rows_to_columns(x: jax.Array, axes: Axes) -> jax.Array:
    """Inside `shard_map`: this device's columns (the last axis) of the rows (axis 0) of all devices of `axes`.

    Small arrays: more is moved than an all-to-all would move, but in one message that many products can share, and
    TPU's compiler plans the routes of an all-to-all for seconds.
    """
    return _own(jax.lax.all_gather(x, axes, axis=0, tiled=True), axes, -1)


def columns_to_rows(x: jax.Array, axes: Axes) -> jax.Array:
    """The way back."""
    return _own(jax.lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True), axes, 0)


def _own(x: jax.Array, axes: Axes, axis: int) -> jax.Array:
    size = x.shape[axis] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, axis)


def _kernel_travels(shared: Axes, contracted: bool, dtype: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return dot(x, gathered(kernel, shared, int(not contracted)), "high", dtype=dtype)


def _rows_travel(shared: Axes, contracted: bool, dtype: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Columns of all rows times this device's part of the kernel."""
    if contracted:
        y = dot(rows_to_columns(x, shared), kernel, "high", dtype=jnp.float32)
        return jax.lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True).astype(dtype)
    y = dot(jax.lax.all_gather(x, shared, axis=0, tiled=True), kernel, "high", dtype=dtype)
    return columns_to_rows(y, shared)


def _split(x: Sequence[int], kernel: Sequence[int], axes: Sequence[str]) -> Split:
    """How the current mesh splits this product; nothing is shared where there is none to split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return Split(PartitionSpec(), (), (), ())
    rows = activation_spec(("batch", "length"), x[:2])
    wide = lambda entry: tuple(axis for axis in axes_of((entry,)) if mesh.shape[axis] > 1)  # noqa: E731
    inner, outer = (wide(entry) for entry in activation_spec(axes, kernel))
    shared = next((part for part in (inner, outer) if part and set(part) <= set(axes_of(rows[:1]))), ())
    return Split(rows, inner, outer, shared)
