"""What layers report beside their output, by how it adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Leaves = dict[str, jax.Array]


@flax.struct.dataclass
class Work:
    """What passes did, summed over rows: the real `tokens` that they read, each as often as it was; and of a recurrent
    core (else None) the `iterations` of all tokens together, and those among them through which a gradient flows,
    `gradients`.
    """

    tokens: Any
    iterations: Any = None
    gradients: Any = None


@flax.struct.dataclass
class Reports:
    """What one layer, or all layers of a pass, report by name; arrays of several layers have an axis [layers] in front.

    `losses`: weighted terms of the objective, means over tokens. `sums`: counts and sums over tokens. `means`: pairs
    (sum, count) [2] that measure a recurrence. `work`: of a whole pass. `depth` [B]: iterations of each row. `routes`
    [B, S, k]: experts taken. `captured`: arrays of one layer by hook point (model/hooks.py).
    """

    losses: Leaves = flax.struct.field(default_factory=dict)
    sums: Leaves = flax.struct.field(default_factory=dict)
    means: Leaves = flax.struct.field(default_factory=dict)
    work: Work | None = None
    depth: jax.Array | None = None
    routes: jax.Array | None = None
    captured: Leaves = flax.struct.field(default_factory=dict)

    def named(self) -> Leaves:
        """All but work and routes by public name: `load` [L, E], `balance_loss` [L], `depth` [B], ..."""
        losses = {f"{name}_loss": value for name, value in self.losses.items()}
        means = {f"recurrent_{name}": value for name, value in self.means.items()}
        return self.sums | losses | means | ({} if self.depth is None else {"depth": self.depth})


def stack_layers(reports: Sequence[Reports]) -> Reports:
    """The reports of layers as one; each name has an axis of the layers that report it, [layers, ...]. What layers
    captured is left out: its shapes differ.
    """
    routes = [report.routes for report in reports if report.routes is not None]
    return Reports(
        losses=_stacked([report.losses for report in reports]),
        sums=_stacked([report.sums for report in reports]),
        routes=jnp.stack(routes) if routes else None,
    )


def _stacked(leaves: Sequence[Leaves]) -> Leaves:
    names = dict.fromkeys(name for layer in leaves for name in layer)
    return {name: jnp.stack([layer[name] for layer in leaves if name in layer]) for name in names}


def merge_passes(passes: Sequence[tuple[int, Reports]]) -> Reports:
    """The reports of the passes (columns, reports) over the columns of the same rows as one.

    Sums, pairs and work add, a loss is the mean weighed by columns, `depth` the deepest, and routes are left out. A
    balance loss is therefore the balance within passes, not over the whole row.
    """
    width = sum(columns for columns, _ in passes)
    shares = jnp.asarray([columns / width for columns, _ in passes])
    whole = jax.tree.map(lambda *values: jnp.stack(values), *(report.replace(routes=None) for _, report in passes))  # type: ignore[attr-defined]
    add = lambda leaves: jax.tree.map(lambda values: values.sum(0), leaves)  # noqa: E731
    losses = jax.tree.map(lambda values: jnp.tensordot(shares, values, 1), whole.losses)
    depth = None if whole.depth is None else whole.depth.max(0)
    return Reports(losses, add(whole.sums), add(whole.means), add(whole.work), depth)
