"""What a layer keeps for its backward pass, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.precision import PRECISIONS

ATTENTION, INPUT, GATHERED = "attention", "layer_input", "gathered_weight"
saved = jax.checkpoint_policies


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps what is computed; not weights named GATHERED, which would be the whole model, nor what else is gathered
    and has no name.
    """
    return primitive.name != "all_gather" and params.get("name") != GATHERED


# "none" keeps all but weights that were gathered from other devices, "full" the layer's input alone; "dots" products
# with weights; "attention" what attention returned, the costliest thing to compute again where rows are long; "offload"
# is "full" with the inputs in the host's memory.
POLICIES: dict[str, Any] = {
    "none": _all_but_gathered,
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


def policy_of(config: ModelConfig) -> str | None:
    """What a config's layers keep; None: all, where no weight is gathered by hand, as for quantised products."""
    return None if config.remat == "none" and PRECISIONS[config.precision].quantized else config.remat


def rematerialised(layer: Callable[..., Any], policy: str | None, looped: bool = False) -> Callable[..., Any]:
    """The function with a backward pass that computes again what the policy does not keep; None: as it is.

    `looped`: the function is the body of a scan.
    """
    # Inside a loop nothing can be shared between forward and backward pass anyway, and the barrier costs time.
    return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=not looped) if _matters(policy) else layer


def module(layer: type[nn.Module], policy: str | None) -> Callable[..., Any]:
    """The like for a module's class."""
    return nn.remat(layer, policy=POLICIES[policy]) if _matters(policy) else layer


def _matters(policy: str | None) -> TypeGuard[str]:
    """Whether there is anything that is not kept."""
    return policy is not None and not (policy == "none" and jax.sharding.get_abstract_mesh().empty)


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks what a policy may keep by its name."""
    return checkpoint_name(x, name)
