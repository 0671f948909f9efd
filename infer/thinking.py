"""What a thinking budget knows of the samples in slots."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

THINKING = -1  # where an answer begins that has not begun


@flax.struct.dataclass
class Thinking:
    """Of B samples: `thought` [B] own tokens of the thought, without delimiters; `spent` [B] of the budget; `waited`
    [B] waits; `read` [B] characters of the delimiter that the last tokens hold; `head`, `tail` [B] the forced tokens
    that are next; `answer` [B] where the answer begins, THINKING before; `dropped` [B] tokens taken back; `own` [B, T]
    whether a token is the policy's.
    """

    thought: jax.Array
    spent: jax.Array
    waited: jax.Array
    read: jax.Array
    head: jax.Array
    tail: jax.Array
    answer: jax.Array
    dropped: jax.Array
    own: jax.Array


def begin_thinking(rows: int, length: int) -> Thinking:
    """Samples that have thought nothing yet."""
    zero = jnp.zeros(rows, jnp.int32)
    return Thinking(*(zero,) * 6, jnp.full(rows, THINKING, jnp.int32), zero, jnp.zeros((rows, length), bool))
