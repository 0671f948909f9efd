"""What a layer keeps for its backward pass, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

ATTENTION, INPUT, GATHERED = "attention", "layer_input", "gathered_weight"
saved = jax.checkpoint_policies

# "none" keeps all, "full" the layer's input alone; "dots" products with weights; "attention" what attention returned,
# the costliest thing to compute again where rows are long; "offload" is "full" with the inputs in the host's memory.
POLICIES: dict[str, Any] = {
    "none": saved.everything_saveable,
    "full": saved.nothing_saveable,
    "dots": saved.dots_with_no_batch_dims_saveable,
    "attention": saved.save_only_these_names(ATTENTION),
    "offload": saved.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialised(layer: Callable[..., Any], policy: str, looped: bool = False) -> Callable[..., Any]:
    """The function with a backward pass that computes again what the policy does not keep; `looped`: in a scan."""
    # Inside a loop nothing can be shared between forward and backward pass anyway, and the barrier costs time.
    return layer if policy == "none" else jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=not looped)


def module(layer: type[nn.Module], policy: str) -> Callable[..., Any]:
    """The like for a module's class."""
    return layer if policy == "none" else nn.remat(layer, policy=POLICIES[policy])


def regathering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a backward pass that gathers weights once more: kept, they would be the whole model.

    Weights are named GATHERED; anything else gathered is kept where it has another name.
    """

    def keeps(primitive: Any, *_: Any, **params: Any) -> bool:
        return primitive.name != "all_gather" and params.get("name") != GATHERED

    return jax.checkpoint(function, policy=keeps)


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks what a policy may keep by its name."""
    return checkpoint_name(x, name)
