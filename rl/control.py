"""What a run moves from step to step besides the parameters: its reference, and the weight of its entropy bonus."""

from typing import Any

import jax
import jax.numpy as jnp

from settings.rl import ControlConfig
from settings.setting import check

Tree = Any


def sync_reference(
    reference: Tree, params: Tree, step: int | jax.Array, every: int, alpha: float = ControlConfig.sync_alpha
) -> Tree:
    """The reference after `step` updates: alpha x params + (1 - alpha) x reference every `every` of them.

    every = 0 keeps the reference for ever, alpha = 1 replaces it by a copy (which outlives params that a jitted
    step was given to donate). Leaves keep the reference's dtype; those that are no floating-point numbers are
    copied. `step` may be traced. Raises ValueError for a negative `every` or an alpha outside (0, 1]. Sources:
    DeepSeek-R1 (2501.12948), a copy; TR-DPO (2404.09656) and TRL, alpha .6 every 512.
    """
    check(ControlConfig(sync_every=every, sync_alpha=alpha))
    if every == 0:
        return reference
    due = (step > 0) & (step % every == 0)
    if isinstance(due, bool):  # known on the host: nothing is computed in the steps between
        return mixed(reference, params, alpha) if due else reference
    return jax.lax.cond(due, lambda: mixed(reference, params, alpha), lambda: reference)


def mixed(reference: Tree, params: Tree, alpha: float) -> Tree:
    """alpha x params + (1 - alpha) x reference, leaf by leaf, in new buffers."""

    def leaf(old: jax.Array, new: jax.Array) -> jax.Array:
        if alpha == 1 or not jnp.issubdtype(old.dtype, jnp.floating):
            return jnp.array(new, old.dtype, copy=True)
        return (alpha * new + (1 - alpha) * old).astype(old.dtype)

    return jax.tree.map(leaf, reference, params)


def adapt_entropy_coef(
    coef: float | jax.Array,
    entropy: float | jax.Array,
    target: float,
    step: float = ControlConfig.entropy_step,
    *,
    low: float = 0.0,
    high: float = ControlConfig.entropy_max,
) -> jax.Array:
    """The next coefficient of the entropy bonus: up by `step` when entropy <= target, else down, in [low, high].

    entropy: mean over the batch's tokens in nats, of the update just made; one that is not finite leaves the
    coefficient as it is. The bonus itself acts only at or below the target: see `gated_entropy_coef`. Source:
    Skywork-OR1 (2505.22312), adaptive entropy control, start 0, step .005, target .2; the bounds are TRL's.
    """
    moved = coef + jnp.where(jnp.asarray(entropy) <= target, step, -step)
    return jnp.where(jnp.isfinite(entropy), jnp.clip(moved, low, high), coef)


def gated_entropy_coef(coef: float | jax.Array, entropy: float | jax.Array, target: float) -> jax.Array:
    """The coefficient to use in a loss: coef where the last entropy was at or below the target, else 0."""
    return jnp.where(jnp.asarray(entropy) <= target, coef, 0.0)
