"""Linear probes of many layers for many sets of labels, in one compiled loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from analysis.probes.features import Features, check_examples, unit_by_layer
from analysis.probes.fitting import Loop, fitted, loop_of
from analysis.probes.head2toe import LINEAR, Plan


def predict_each(
    values: ArrayLike, labels: ArrayLike, others: ArrayLike, plan: Plan = LINEAR, *, classes: int | None = None
) -> np.ndarray:
    """What a linear probe of each layer, fitted to each set of labels, says of other examples.

    values [L, N, D], labels [K, N], others [L, M, D] -> classes [L, K, M], those of `predict(linear_probe(...), ...)`
    for a layer and a set of labels alone. Raises ValueError as `linear_probe`, and for other shapes.
    """
    table, asked, sets = np.asarray(values, np.float32), np.asarray(others, np.float32), np.asarray(labels)
    if table.ndim != 3 or asked.ndim != 3 or table.shape[::2] != asked.shape[::2] or sets.ndim != 2:
        raise ValueError(
            "values [L, N, D], labels [K, N] and others [L, M, D] are needed,"
            f" found {table.shape}, {sets.shape} and {asked.shape}"
        )
    count = int(sets.max(initial=0)) + 1 if classes is None else classes
    for number, layer in enumerate(table):
        features = Features(layer, (f"layer {number}",), np.zeros(table.shape[2], int))
        for each in sets if number == 0 else sets[:1]:
            check_examples(features, each, count)
    return np.asarray(_predicted(table, jnp.asarray(sets, jnp.int32), asked, plan.lr, loop_of(plan, count)))


@partial(jax.jit, static_argnames="loop")
def _predicted(values: jax.Array, labels: jax.Array, others: jax.Array, lr: jax.Array, loop: Loop) -> jax.Array:
    one_layer = jnp.zeros(values.shape[2], jnp.int32)

    def layer(arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
        table, asked = (unit_by_layer(x, one_layer, 1) for x in arrays)

        def one(targets: jax.Array) -> jax.Array:
            weights, bias, _ = fitted(table, targets, jnp.float32(0), lr, loop)
            return (asked @ weights + bias).argmax(1)

        return jax.vmap(one)(labels)

    return jax.lax.map(layer, (values, others))
