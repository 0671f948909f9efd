"""Estimators of KL(policy || reference) from the log-probabilities of sampled tokens."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from settings.rl import MAX_LOG_RATIO, PolicyLossConfig
from settings.setting import unknown


def k1(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """The log-ratio itself: unbiased as a value, but its gradient has mean zero under the policy."""
    return log_ratio


def k2(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half the squared log-ratio: biased as a value, yet its gradient is that of the true KL."""
    return jnp.square(log_ratio) / 2


def k3(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(-d) + d - 1: unbiased and never negative. The log-ratio is clipped to +-20 inside."""
    clipped = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(-d) - 1 loses where the two policies nearly agree.
    return jnp.expm1(-clipped) + clipped


def straight_through(value: Float[Array, "*N"], gradient: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """An array that is worth `value` and is differentiated as `gradient`; both of one shape."""
    return gradient + jax.lax.stop_gradient(value - gradient)


KINDS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k1_straight_through": lambda d: straight_through(k1(d), k2(d)),
    "k3_straight_through": lambda d: straight_through(k3(d), k2(d)),
}


def kl(
    logps: Float[Array, "*N"], ref_logps: Float[Array, "*N"], kind: str = PolicyLossConfig.kl_kind
) -> Float[Array, "*N"]:
    """Per-token estimate of KL(policy || reference).

    logps, ref_logps: [...] log-probabilities of the same sampled tokens; returns [...]. Only `logps` is
    differentiated. `kind` is k1, k2, k3 or a straight-through form (the value of k1 or k3, the gradient of
    k2); another name raises ValueError. As a loss k1 pulls nowhere on policy, for E[grad log p] = 0.

    Source: Schulman, "Approximating KL Divergence" (2020); k3 as a loss: DeepSeekMath (2402.03300), equation
    4.
    """
    check(kind=(kind, KINDS))
    return KINDS[kind](logps - jax.lax.stop_gradient(ref_logps))


def check(**arguments: tuple[str, Collection[str]]) -> None:
    """Raise ValueError for the first argument, given as name=(value, choices), whose value is no choice."""
    for name, (value, choices) in arguments.items():
        if value not in choices:
            raise ValueError(unknown(name, value, choices))
