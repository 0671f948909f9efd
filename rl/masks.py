"""What counts in a policy loss: masks of rows and tokens, and the helpers that keep padding out of every sum."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped


def top_entropy_mask(
    entropies: Float[Array, "N T"], mask: Shaped[Array, "N T"], share: float = 0.2
) -> Float[Array, "N T"]:
    """1 on the `share` of the valid tokens with the highest entropies, 0 elsewhere: [N, T], constant.

    entropies (in nats) and mask [N, T]. The threshold is the (1 - share) quantile, interpolated linearly, over
    all valid tokens given; ties with it are kept. It is to be one for the global batch: make the mask before the
    update, from the entropies under the parameters that sampled, and pass it as (a factor of) `policy_loss`'s
    `weights`, so that the dropped tokens still count in the denominator. Made inside an objective, each
    micro-batch has a threshold of its own, and micro-batches no longer add up to the whole batch. Raises
    ValueError for a share outside (0, 1]. Source: "Beyond the 80/20 Rule" (2506.01939), share .2.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} of the tokens must lie in (0, 1]; the paper keeps 0.2")
    valid = mask > 0
    entropies = stop_gradient(entropies)
    threshold = jnp.nanquantile(jnp.where(valid, entropies, jnp.nan), 1 - share)
    return (valid & (entropies >= threshold)).astype(entropies.dtype)


def off_policy_mask(
    logps: Float[Array, "N T"],
    old_logps: Float[Array, "N T"],
    advantages: Float[Array, "N T"] | Float[Array, " N"],
    mask: Shaped[Array, "N T"],
    threshold: float = 0.5,
) -> Float[Array, "N T"]:
    """0 on tokens with A < 0 in rows whose mean of old_logps - logps passes `threshold`, else 1: [N, T], constant.

    logps: the current policy's, hence new at every update. old_logps: those of what really sampled the tokens
    (DeepSeek-V3.2's pi_old is the sampling engine), so that the mean holds both the staleness of the policy and
    the gap between sampler and trainer; with old_logps recomputed by the trainer it holds the staleness alone.
    All [N, T], advantages also [N]; threshold in nats per token. A row is judged by itself: micro-batches change
    nothing. Source: DeepSeek-V3.2 (2512.02556), off-policy sequence masking.
    """
    valid = mask > 0
    drift = masked(old_logps, valid) - masked(logps, valid)
    stray = row_mean(drift, mask.astype(drift.dtype))[:, None] > threshold
    return stop_gradient(jnp.where(stray & (masked(per_token(advantages, mask), valid) < 0), 0, 1).astype(drift.dtype))


def row_mean(values: Float[Array, "N T"], weight: Float[Array, "N T"]) -> Float[Array, " N"]:
    """Mean over each row's tokens, [N, T] -> [N]; 0 for a row without tokens."""
    return (values * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)


def masked(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The values where valid, 0 elsewhere: chosen, not multiplied, so that a NaN in the padding is lost."""
    return jnp.where(valid, values, 0)


def per_token(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Values per row [N] or per token [N, T] as [N, T], without a gradient; ValueError otherwise."""
    if values.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(f"expected shape {mask.shape[:1]} or {mask.shape}, found {values.shape}")
    return stop_gradient(jnp.broadcast_to(values if values.ndim == 2 else values[:, None], mask.shape))
