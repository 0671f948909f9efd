"""The patterns of the name tables: from a tensor of a file to a part of a parameter, and back.

A pattern such as `"(h k) d -> d h k"` reads: the file stores a matrix whose rows are heads x head dimension
and whose columns are the model dimension; we store [d, h, k]; `()` is an axis of size 1 that only the file has. Both
directions follow from it, and so does the part of the file that one shard needs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Source(Protocol):
    """What `read_part` reads from: an array, or a lazy slice of a file."""

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


def file_shape(pattern: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in the file of a parameter that has this shape on the right side of the pattern."""
    groups, axes = _parse(pattern)
    sizes = dict(zip(axes, shape, strict=True))
    return tuple(math.prod(sizes[axis] for axis in group) for group in groups)


def right_axes(pattern: str) -> tuple[str, ...]:
    """The names of our parameter's axes."""
    return _parse(pattern)[1]


def read_part(source: Source, pattern: str, shape: Sequence[int], part: Sequence[slice]) -> np.ndarray:
    """Reads `part` of the right side (of full shape `shape`) from the file's tensor, touching no more than it
    must.
    """
    groups, axes = _parse(pattern)
    sizes, bounds = dict(zip(axes, shape, strict=True)), dict(zip(axes, part, strict=True))
    cuts = [_cut([sizes[axis] for axis in group], [bounds[axis] for axis in group]) for group in groups]
    block = source[tuple(cut.outer for cut in cuts)]
    block = block.reshape([size for cut in cuts for size in cut.sizes])
    block = block[tuple(inner for cut in cuts for inner in cut.inner)]
    order = [axis for group in groups for axis in group]
    return block.transpose([order.index(axis) for axis in axes])


def write_whole(value: np.ndarray, pattern: str) -> np.ndarray:
    """The tensor of the file for a whole right side: the inverse of `read_part`, contiguous."""
    groups, axes = _parse(pattern)
    order = [axis for group in groups for axis in group]
    value_in_order = value.transpose([axes.index(axis) for axis in order])
    return np.ascontiguousarray(value_in_order.reshape(file_shape(pattern, value.shape)))


class _Cut(NamedTuple):
    """A range of one file axis, the sizes it unfolds to, and what to keep of each."""

    outer: slice
    sizes: tuple[int, ...]
    inner: tuple[slice, ...]


def _cut(sizes: Sequence[int], bounds: Sequence[slice]) -> _Cut:
    """Finds the shortest range of a merged axis that holds these bounds."""
    if not sizes:
        return _Cut(slice(0, 1), (), ())
    (start, stop), below = (bounds[0].start, bounds[0].stop), math.prod(sizes[1:])
    if stop - start == 1:
        inner = _cut(sizes[1:], bounds[1:])
        outer = slice(start * below + inner.outer.start, start * below + inner.outer.stop)
        return _Cut(outer, (1, *inner.sizes), (slice(None), *inner.inner))
    return _Cut(slice(start * below, stop * below), (stop - start, *sizes[1:]), (slice(None), *bounds[1:]))


@functools.cache
def _parse(pattern: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    left, right = pattern.split(" -> ")
    groups = tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\w+", left))
    return groups, tuple(right.split())
