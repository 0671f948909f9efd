"""The patterns of the name tables: whole tensors, parts of them, and how much is read."""

from __future__ import annotations

import re

import numpy as np
import pytest

from model.hf.layout import file_shape, read_part, write_whole
from model.hf.tables import TABLES

SIZES = {"v": 10, "d": 6, "h": 4, "k": 3, "f": 8, "n": 3, "p": 5, "e": 7, "r": 9, "m": 12, "c": 11, "w": 4}
PATTERNS = sorted({rule.pattern for table in TABLES.values() for rule in table.rules})


class Counted:
    """An array that counts the elements taken from it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.taken = array, 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.taken += self.array[index].size
        return self.array[index]


def ours_of(pattern: str) -> np.ndarray:
    shape = [SIZES[axis] for axis in pattern.split(" -> ")[1].split()]
    return np.arange(np.prod(shape)).reshape(shape)


def whole(array: np.ndarray) -> list[slice]:
    return [slice(0, size) for size in array.shape]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reading_undoes_writing(pattern: str) -> None:
    ours = ours_of(pattern)
    theirs = write_whole(ours, pattern)
    assert theirs.shape == file_shape(pattern, ours.shape)
    np.testing.assert_array_equal(read_part(theirs, pattern, ours.shape, whole(ours)), ours)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_part_is_read_right(pattern: str) -> None:
    rng = np.random.default_rng(0)
    ours = ours_of(pattern)
    theirs = write_whole(ours, pattern)
    for _ in range(30):
        ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in ours.shape]
        part = [slice(int(start), int(stop)) for start, stop in ends]
        np.testing.assert_array_equal(read_part(theirs, pattern, ours.shape, part), ours[tuple(part)])


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if "h" in pattern or "d" in pattern])
def test_a_shard_reads_its_share(pattern: str) -> None:
    """Half the heads, or half the model dimension, and for a fused tensor one of its three: not an element more, but
    where those three take turns.
    """
    ours = ours_of(pattern)
    source = Counted(write_whole(ours, pattern))
    axes = pattern.split(" -> ")[1].split()
    part = whole(ours)
    for axis, size in (("h", 2), ("d", 3), ("n", 1)):
        if axis in axes:
            part[axes.index(axis)] = slice(0, size)
    got = read_part(source, pattern, ours.shape, part)
    in_turn = re.search(r"\(\w n", pattern)
    assert source.taken == got.size * (SIZES["n"] if in_turn else 1)
    assert got.size < ours.size


def test_llama_and_gpt2_layouts() -> None:
    """Against the definitions: rows of q_proj are heads x head_dim; columns of c_attn are q, k, v."""
    q = np.arange(12 * 6).reshape(12, 6)
    np.testing.assert_array_equal(
        read_part(q, "(h k) d -> d h k", (6, 4, 3), [slice(0, 6), slice(0, 4), slice(0, 3)]),
        q.T.reshape(6, 4, 3),
    )
    fused = np.arange(6 * 36).reshape(6, 36)
    part = [slice(1, 2), slice(0, 6), slice(0, 4), slice(0, 3)]
    keys = read_part(fused, "d (n h k) -> n d h k", (3, 6, 4, 3), part)
    np.testing.assert_array_equal(keys[0], fused[:, 12:24].reshape(6, 4, 3))
