"""Causal tests: what a model says when arrays inside it are taken from another pass (activation patching, 2202.05262).

A patch is an array as it was captured, NaN wherever the pass is left alone; `Model.apply(patches=...)` puts it in.

    clean = model.apply(params, question, capture=("residual",)).captured
    patch = only(clean["residual"][2], columns=[5])
    patched = model.apply(params, other_question, patches={"residual": {2: patch}})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.lm import Model, Output, Params

Measure = Callable[[Output], jax.Array]  # what is measured of a pass, [B]


def only(
    array: jax.Array,
    *,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    iterations: Sequence[int] | None = None,
    column_axis: int | None = None,
) -> jax.Array:
    """The array at these rows, columns and iterations, NaN elsewhere; None means all.

    `array` is [B, S, ...], or [iterations, B, S, ...] where `iterations` is given; `column_axis` is that of S where it
    is another one, as in attention weights. Raises ValueError for indices that do not exist.
    """
    first = 0 if iterations is None else 1
    column_axis = first + 1 if column_axis is None else column_axis
    chosen = jnp.ones(array.shape, bool)
    for what, axis, wanted in (
        ("iterations", 0, iterations),
        ("rows", first, rows),
        ("columns", column_axis, columns),
    ):
        if wanted is None:
            continue
        indices = np.asarray(wanted, int)
        size = array.shape[axis]
        if indices.size == 0 or indices.min() < -size or indices.max() >= size:
            raise ValueError(f"{what}={list(wanted)} of an array of the shape {array.shape}: there are {size}")
        here = jnp.zeros(size, bool).at[indices].set(True)
        chosen = chosen & here.reshape(-1, *(1,) * (array.ndim - axis - 1))
    return jnp.where(chosen, array, jnp.nan)


def exchanged(array: jax.Array, order: Sequence[int], axis: int = 0) -> jax.Array:
    """The array with the rows of other examples in the place of its own: row i is that of example `order[i]`."""
    if sorted(order) != list(range(array.shape[axis])):
        raise ValueError(f"order must name each of {array.shape[axis]} rows once, found {list(order)}")
    return jnp.take(array, jnp.asarray(order), axis)


def restore_one_by_one(
    model: Model, params: Params, tokens: jax.Array, source: dict[int, jax.Array], measure: Measure, **options: Any
) -> np.ndarray:
    """What `measure` finds when one column of one layer at a time is replaced by that of `source`: [layers, S, B].

    `source` is `captured["residual"]` (or another name, as `name=...`) of another pass over rows of the same shape, its
    layers without iterations; `options` go to `model.apply`. Causal tracing restores clean states in a corrupted pass.
    Raises ValueError for arrays of other rows.
    """
    name = options.pop("name", "residual")
    wrong = {i: x.shape for i, x in source.items() if x.shape[:2] != tokens.shape}
    if wrong:
        raise ValueError(f"the source's rows {wrong} are not those of tokens {tokens.shape}")

    @jax.jit
    def by_column(params: Params, tokens: jax.Array, patches: dict[int, jax.Array]) -> jax.Array:
        columns = jnp.arange(tokens.shape[1])

        def one(column: jax.Array) -> jax.Array:
            here = (columns == column)[None, :, None]
            patched = {i: jnp.where(here, x, jnp.nan) for i, x in patches.items()}
            return measure(model.apply(params, tokens, patches={name: patched}, **options))

        return jax.lax.map(one, columns)

    blank = {i: jnp.full_like(x, jnp.nan) for i, x in source.items()}
    return np.stack([by_column(params, tokens, blank | {i: source[i]}) for i in sorted(source)])
