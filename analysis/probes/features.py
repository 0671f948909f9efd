"""From activations to the features of a probe: positions pooled, layers side by side, each example's layer of length 1.

Source: Head2Toe (2201.03529), section 3 and appendix; google-research/head2toe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from settings.setting import unknown

POOLS = ("mean", "last")


@dataclasses.dataclass(frozen=True)
class Features:
    """The pooled features of all layers, not normalised.

    values [N, F] float32; layers: their names in order; layer_of [F]: which of them each feature belongs to, ascending.
    """

    values: np.ndarray
    layers: tuple[str, ...]
    layer_of: np.ndarray

    def rows(self, index: Any) -> Features:
        """The same features of some examples: an index array, a slice or a mask."""
        return dataclasses.replace(self, values=self.values[index])

    def number_of(self, layer: str) -> int:
        """Which layer a name belongs to; raises ValueError, with the nearest name, where it is none."""
        if layer not in self.layers:
            raise ValueError(unknown("layer", layer, self.layers))
        return self.layers.index(layer)


def pool(activations: ArrayLike, mask: ArrayLike | None = None, how: str | int = "mean") -> np.ndarray:
    """Activations [N, S, D] over positions -> [N, D], or [N, k * D] for k segments.

    mask [N, S]: 1 or True on valid tokens (default: all). how: "mean" of the valid tokens, the "last" valid token, or a
    number k: a row's valid tokens are cut into k runs as equal as can be, and each is averaged. (The published code
    takes groups of one size and leaves the rest out, which is the same where k divides the tokens.) Raises ValueError
    for other shapes or names and for a row with fewer valid tokens than segments.
    """
    table = np.asarray(activations, np.float32)
    if table.ndim != 3:
        raise ValueError(f"activations are [N, S, D], found shape {table.shape}")
    valid = np.ones(table.shape[:2], bool) if mask is None else np.asarray(mask) > 0
    if valid.shape != table.shape[:2]:
        raise ValueError(f"a mask of {valid.shape} does not fit activations of {table.shape}: it must be [N, S]")
    segments = how if isinstance(how, int) else 1
    if isinstance(how, str) and how not in POOLS:
        raise ValueError(unknown("pooling", how, POOLS) + " Or a number of segments.")
    if segments < 1:
        raise ValueError(f"at least one segment is needed, found {segments}")
    counts = valid.sum(1)
    if (counts < segments).any():
        row = int(np.argmax(counts < segments))
        raise ValueError(f"example {row} has {counts[row]} valid tokens for {segments} segments")
    if how == "last":
        return table[np.arange(len(table)), table.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1)]
    place = (np.cumsum(valid, 1) - 1) * segments // counts[:, None]
    chosen = (place[:, None] == np.arange(segments)[:, None]) & valid[:, None]  # [N, k, S]
    # Where a mask is 0 may stand anything, infinite values too.
    sums = np.einsum("nks,nsd->nkd", chosen.astype(np.float32), np.where(valid[..., None], table, 0))
    return (sums / chosen.sum(2)[..., None]).astype(np.float32).reshape(len(table), -1)


def segments_for(target_size: int, width: int) -> int:
    """How many segments of `width` features make at most `target_size`, Head2Toe's measure of a layer; at least one."""
    return max(1, target_size // width)


def collect(layers: Mapping[str, ArrayLike], mask: ArrayLike | None = None, how: str | int = "mean") -> Features:
    """Layers by name, [N, S, D_l] (which are pooled) or [N, D_l] (which are taken as they are), side by side.

    Raises ValueError as `pool`, for no layer, and for layers of different numbers of examples.
    """
    if not layers:
        raise ValueError("no layers: give at least one array by name")
    tables = []
    for name, array in layers.items():
        if np.ndim(array) not in (2, 3):
            raise ValueError(f"layer {name!r} must be [N, S, D] or [N, D], found shape {np.shape(array)}")
        tables.append(np.asarray(array, np.float32) if np.ndim(array) == 2 else pool(array, mask, how))
    counts = [len(table) for table in tables]
    if len(set(counts)) != 1:
        raise ValueError(f"layers hold other numbers of examples: {dict(zip(layers, counts, strict=True))}")
    widths = [table.shape[1] for table in tables]
    return Features(np.concatenate(tables, 1), tuple(layers), np.repeat(np.arange(len(tables)), widths))


def normalised(values: ArrayLike, layer_of: ArrayLike, layers: int | None = None) -> jax.Array:
    """Values [N, F] such that each example's features of each layer have length 1; those that are all 0 stay 0.

    layer_of [F]: ascending numbers below `layers` (default: the last one + 1).
    """
    count = int(np.max(np.asarray(layer_of))) + 1 if layers is None else layers
    return unit_by_layer(jnp.asarray(values, jnp.float32), jnp.asarray(layer_of), count)


@partial(jax.jit, static_argnames="layers")
def unit_by_layer(values: jax.Array, layer_of: jax.Array, layers: int) -> jax.Array:
    """`normalised` for what is traced."""
    sums = lambda x: jax.ops.segment_sum(x.T, layer_of, layers, indices_are_sorted=True)  # noqa: E731
    largest = jax.ops.segment_max(jnp.abs(values).T, layer_of, layers, indices_are_sorted=True)
    # Over the largest first: squares of small or large features leave float32.
    scale = jnp.where(largest > 0, largest, 1).T[:, layer_of]
    scaled = values / scale
    length = jnp.sqrt(sums(jnp.square(scaled))).T[:, layer_of]
    return jnp.where(length > 0, scaled / jnp.where(length > 0, length, 1), 0)


def check_examples(features: Features, labels: ArrayLike, classes: int | None = None) -> tuple[np.ndarray, int]:
    """Labels [N] as int32, and the number of classes (default: the largest label + 1).

    Raises ValueError for labels that are no class or not as many as examples, fewer examples than classes, one class
    alone, NaN and infinite features, and layers whose features are the same in all examples.
    """
    targets, n = np.asarray(labels), len(features.values)
    if targets.shape != (n,):
        raise ValueError(f"labels are [N] for {n} examples, found shape {targets.shape}")
    if targets.dtype.kind not in "iub" or (n and targets.min() < 0):
        raise ValueError(f"labels are whole numbers from 0 on, found {targets.dtype} from {targets.min(initial=0)} on")
    count = int(targets.max(initial=-1)) + 1 if classes is None else classes
    if targets.max(initial=-1) >= count:
        raise ValueError(f"label {targets.max()} is none of {count} classes (0 .. {count - 1})")
    if n < count:
        raise ValueError(f"{n} examples are fewer than {count} classes")
    if len(np.unique(targets)) < 2:
        raise ValueError(f"all {n} labels are the same: there is nothing to tell apart")
    _check_values(features)
    return targets.astype(np.int32), count


def _check_values(features: Features) -> None:
    wrong = ~np.isfinite(features.values)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        layer = features.layers[features.layer_of[column]]
        raise ValueError(
            f"{wrong.sum()} of {wrong.size} features are NaN or infinite, the first in example {row} of layer {layer!r}"
        )
    same = (features.values == features.values[:1]).all(0)
    for number, layer in enumerate(features.layers):
        if same[features.layer_of == number].all():
            raise ValueError(
                f"layer {layer!r}: all {(features.layer_of == number).sum()} features are the same in all {len(wrong)}"
                " examples: leave it out, or pool otherwise"
            )


def columns_of(features: Features, layers: Sequence[str]) -> np.ndarray:
    """The numbers of the features that belong to some layers, by name."""
    return np.flatnonzero(np.isin(features.layer_of, [features.number_of(layer) for layer in layers]))
