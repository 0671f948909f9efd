"""What a model learns by rule, not by gradient: router biases, running statistics.

The state lives beside the parameters, in `params["state"]`; the rules read what the layers report, summed over the
global batch, after the optimiser's step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from model import moe
from model.config import ModelConfig
from model.peer import layer as peer
from model.reports import Reports

Leaves = dict[str, jax.Array]


class Rule(NamedTuple):
    """One kind of feed-forward: what its layers report, a layer's next state, and metrics over all its layers."""

    reports: tuple[str, ...]
    update: Callable[..., Leaves]  # (state, sums, config)
    metrics: Callable[..., Leaves]  # (sums, config)


RULES: dict[str, Rule] = {
    "moe": Rule(moe.REPORTS, moe.update_state, moe.metrics),
    "peer": Rule(("usage", "query", "query_sq", "peer_tokens"), peer.update_state, peer.metrics),
}


@flax.struct.dataclass
class RuleReports:
    """What the rules read, summed over a global batch: the sums, means and work that the layers of the stack report,
    [layers, ...], and `ahead` the sums of the modules of multi-token prediction.
    """

    stack: Reports = flax.struct.field(default_factory=Reports)
    ahead: Reports = flax.struct.field(default_factory=Reports)


def learn(config: ModelConfig, state: dict[str, Any], reports: RuleReports) -> tuple[dict[str, Any], Leaves]:
    """(the next `params["state"]`, metrics such as moe/max_violation and compute/tokens)."""
    metrics: Leaves = {f"recurrent/{name}": v[0] / jnp.maximum(v[1], 1) for name, v in reports.stack.means.items()}
    if (work := reports.stack.work) is not None:
        metrics |= {f"compute/{name}": value for name, value in vars(work).items() if value is not None}
    ffns = config.per_layer("ffn")
    stack = [(f"layer_{i}", ffn) for i, ffn in enumerate(ffns)]
    ahead = [(f"mtp_{k}/block", ffns[-1]) for k in range(config.mtp.depth)]
    for prefix, layers, reported in (("", stack, reports.stack), ("mtp/", ahead, reports.ahead)):
        for kind, rule in RULES.items():
            sums = {name: reported.sums[name] for name in rule.reports if name in reported.sums}
            if not sums:
                continue
            metrics |= {prefix + name: value for name, value in rule.metrics(sums, config).items()}
            paths = [f"{path}/ffn" for path, ffn in layers if ffn == kind]
            for i, path in enumerate(paths):
                of_layer = {name: value[i] for name, value in sums.items()}
                state = _changed(state, path.split("/"), functools.partial(rule.update, sums=of_layer, config=config))
    return state, metrics


def _changed(tree: dict[str, Any], path: list[str], change: Callable[[Leaves], Leaves]) -> dict[str, Any]:
    """The tree with `change` applied to the leaves at `path`; the same where there are none."""
    if not path:
        return change(tree)
    return {**tree, path[0]: _changed(tree[path[0]], path[1:], change)} if path[0] in tree else tree
