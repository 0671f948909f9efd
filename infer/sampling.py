"""From logits to a token, and the log-probability of the distribution it was really drawn from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: static, so that each combination compiles once. `greedy` is temperature 0; `top_k` 0 keeps all."""

    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1:
            raise ValueError(f"need top_k >= 0, 0 < top_p <= 1 and 0 <= min_p < 1; found {self}")

    @property
    def truncates(self) -> bool:
        """Whether some tokens get probability zero, so that log-probs differ from the full softmax."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def truncate(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits [B, V] with the tokens outside top-k, then top-p (1904.09751), then min-p (2407.01082) pushed to -1e30."""
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, NEVER, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, -1, descending=True)
        probabilities = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        kept = jnp.sum(before < sampling.top_p, -1, keepdims=True)
        logits = jnp.where(logits < jnp.take_along_axis(ordered, kept - 1, -1), NEVER, logits)
    if sampling.min_p > 0:
        floor = logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < floor, NEVER, logits)
    return logits


def draw(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], temperature: jax.Array, sampling: Sampling
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """One token per row: logits [B, V], keys [B] -> (tokens [B], log-probs [B]).

    The log-prob is that of the distribution drawn from, temperature and truncation included; greedy choice is certain,
    so 0.
    """
    if sampling.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32), jnp.zeros(logits.shape[0])
    logits = truncate(logits.astype(jnp.float32) / temperature, sampling)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    tokens = jnp.argmax(logits + noise, -1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, -1)
