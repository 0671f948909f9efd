"""From logits to a token, with the log-probability it was really drawn with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from infer.sampling import Truncation

NEVER = -1e30


def truncate(logits: Float[Array, "... V"], rule: Truncation) -> Float[Array, "... V"]:
    """Logits with the tokens outside top-k, then top-p (1904.09751), then min-p (2407.01082) pushed to -1e30."""
    if 0 < rule.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, rule.top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, NEVER, logits)
    if rule.top_p < 1:
        ordered = jnp.sort(logits, -1, descending=True)
        probabilities = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        kept = jnp.sum(before < rule.top_p, -1, keepdims=True)
        logits = jnp.where(logits < jnp.take_along_axis(ordered, kept - 1, -1), NEVER, logits)
    if rule.min_p > 0:
        floor = logits.max(-1, keepdims=True) + jnp.log(rule.min_p)
        logits = jnp.where(logits < floor, NEVER, logits)
    return logits


def draw(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], temperature: jax.Array, rule: Truncation
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """One token per row: logits [B, V], keys [B] -> (tokens [B], log-probs [B]).

    The log-prob is that of the distribution drawn from, temperature and truncation included; greedy choice is certain,
    so 0.
    """
    if rule.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32), jnp.zeros(logits.shape[0])
    logits = truncate(logits.astype(jnp.float32) / temperature, rule)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    tokens = jnp.argmax(logits + noise, -1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, -1)
