"""The density of soft thoughts (Latent-GRPO, 2604.27998), which stands in a policy loss for a log-prob."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float


def soft_density(
    scores: Float[Array, "... K"], logps: Float[Array, "... K"], gains: Float[Array, ...] | None = None
) -> Float[Array, ...]:
    """The log-density of soft thoughts: the mean over their K tokens of -d - exp(-d), d = score - logp.

    It is that of unshifted, unclamped Gumbel noise, whatever noise was drawn (section 3.3). Where d < 0 its gradient
    points the wrong way: a thought that is worth more would become less likely. Where advantages `gains` [...] are not
    above 0 such a d is mirrored in the gradient, and keeps its value, as in the published code.
    """
    apart = scores - logps
    value = -apart - jnp.exp(-apart)
    if gains is not None:
        # The mirror image of the score about the log-prob is another score, a constant like the score itself.
        mirrored = stop_gradient(2 * logps - scores) - logps
        other = -mirrored - jnp.exp(-mirrored)
        swapped = (apart < 0) & (gains[..., None] <= 0)
        value = jnp.where(swapped, other + stop_gradient(value - other), value)
    return value.mean(-1)
