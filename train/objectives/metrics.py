"""Metrics of an objective, typed by how those of micro-batches are merged: pairs (sum, count), largest, smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Metrics = dict[str, Any]  # a name's pair, `Maximum` or `Minimum`, and under "sums" a model.rules.RuleReports


@flax.struct.dataclass
class Maximum:
    """The largest value of all micro-batches."""

    value: jax.Array

    def __float__(self) -> float:
        return float(self.value)


@flax.struct.dataclass
class Minimum:
    """The smallest value of all micro-batches."""

    value: jax.Array

    def __float__(self) -> float:
        return float(self.value)


def _combine(metric: Any) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], float]:
    """How arrays of a metric are merged, and what changes nothing when it is merged."""
    if isinstance(metric, Maximum):
        return jnp.maximum, -jnp.inf
    return (jnp.minimum, jnp.inf) if isinstance(metric, Minimum) else (jnp.add, 0)


def merge(left: Metrics, right: Metrics) -> Metrics:
    """The metrics of two micro-batches as one: pairs and sums add, extremes stay."""
    return {name: jax.tree.map(_combine(value)[0], value, right[name]) for name, value in left.items()}


def nothing(shapes: Metrics) -> Metrics:
    """The metrics of no rows, to which others are merged."""

    def filled(metric: Any) -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, _combine(metric)[1], x.dtype), metric)

    return {name: filled(metric) for name, metric in shapes.items()}


def finish(metrics: Metrics) -> dict[str, jax.Array]:
    """Divides every pair (sum, count), and takes the values of extremes; what the rules read is left out."""

    def finished(metric: Any) -> jax.Array:
        if isinstance(metric, Maximum | Minimum):
            return metric.value
        return metric[0] / jnp.maximum(metric[1], 1e-8)

    return {name: finished(metric) for name, metric in metrics.items() if name != "sums"}
