"""How far a student's next-token distributions lie from a teacher's: KL either way, and what lies between (GKD).

| distance                              | arguments                                                 |
|---------------------------------------|-----------------------------------------------------------|
| forward KL(teacher, student), logits  | beta=0                                                    |
| reverse KL(student, teacher), MiniLLM | beta=1                                                    |
| generalised JSD (GKD, 2306.13649)     | 0 < beta < 1                                              |
| the teacher's top k alone             | top_k=k; tail: one bucket for the rest, else renormalised |

The loss is discontinuous in beta: near 0 and near 1 it goes to 0, at 0 and at 1 it is a KL.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.sharding import size_of

TIME_BLOCK = 256
LARGEST_SHARE = 1 - 1e-7  # of the top k: what is left keeps a logarithm


def divergence(
    student: Float[Array, "... V"], teacher: Float[Array, "... V"], beta: float, temperature: float = 1.0
) -> Float[Array, ...]:
    """The generalised Jensen-Shannon divergence of two tensors of logits, per token.

    beta KL(teacher, m) + (1 - beta) KL(student, m) with m = (1 - beta) student + beta teacher; at 0 and 1 the KLs.
    """
    student, teacher = (jax.nn.log_softmax(x / temperature) for x in (student, teacher))
    return between(student, teacher, beta)


def between(
    student: Float[Array, "... K"],
    teacher: Float[Array, "... K"],
    beta: float,
    present: Bool[Array, "... K"] | None = None,
) -> Float[Array, ...]:
    """The like of log-probs over one support, of whose entries those that are not `present` do not count."""
    if present is not None:
        student, teacher = (jnp.where(present, x, 0.0) for x in (student, teacher))
    if beta == 0:
        terms = jnp.exp(teacher) * (teacher - student)
    elif beta == 1:
        terms = jnp.exp(student) * (student - teacher)
    else:
        middle = jnp.logaddexp(student + jnp.log(1 - beta), teacher + jnp.log(beta))
        terms = beta * jnp.exp(teacher) * (teacher - middle) + (1 - beta) * jnp.exp(student) * (student - middle)
    return (terms if present is None else jnp.where(present, terms, 0.0)).sum(-1)


def on_support(
    student: Float[Array, "... K"],
    teacher: Float[Array, "... K"],
    beta: float,
    tail: bool = True,
    present: Bool[Array, "... K"] | None = None,
) -> Float[Array, ...]:
    """The divergence where only log-probs of some tokens are known, those of the full softmax: with `tail` all other
    tokens are one more, else both are renormalised to the tokens known.
    """
    present = jnp.ones(student.shape, bool) if present is None else present
    if tail:
        student, teacher = (_with_rest(x, present) for x in (student, teacher))
        present = jnp.concatenate([present, jnp.ones_like(present[..., :1])], -1)
    else:
        student, teacher = (x - jax.nn.logsumexp(x, -1, where=present, keepdims=True) for x in (student, teacher))
    return between(student, teacher, beta, present)


def support_of(
    student: Float[Array, "... V"], teacher: Float[Array, "... V"], top_k: int, beta: float
) -> tuple[Int[Array, "... K"], Bool[Array, "... K"]]:
    """The ids of the support and which are no repeats: the teacher's `top_k` for beta=0, the student's for beta=1, and
    both, 2 x `top_k`, between.
    """
    ids = [
        jax.lax.top_k(x, top_k)[1]
        for x in ((teacher,) if beta == 0 else (student,) if beta == 1 else (student, teacher))
    ]
    both = jnp.concatenate(ids, -1)
    present = jnp.ones(both.shape, bool)
    if len(ids) == 2:
        seen = (ids[1][..., :, None] == ids[0][..., None, :]).any(-1)
        present = jnp.concatenate([present[..., :top_k], ~seen], -1)
    return both, present


def _with_rest(logps: jax.Array, present: jax.Array) -> jax.Array:
    """Log-probs [..., K + 1], the last that of all tokens but the `present` ones."""
    share = jnp.where(present, jnp.exp(logps), 0.0).sum(-1, keepdims=True)
    return jnp.concatenate([logps, jnp.log1p(-jnp.minimum(share, LARGEST_SHARE))], -1)


def of_hidden(
    student: tuple[jax.Array, jax.Array, float],
    teacher: tuple[jax.Array, jax.Array, float],
    beta: float,
    temperature: float = 1.0,
    block: int = TIME_BLOCK,
) -> jax.Array:
    """The divergence [B, T] of two models' states, each (hidden [B, T, D], head [V, D], logit scale).

    Logits are held of `block` tokens at a time, in the forward pass and again in the backward pass.
    """

    def apart(part: tuple[jax.Array, ...]) -> jax.Array:
        logits = [
            scale * jnp.einsum("...d,vd->...v", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
            for x, (_, head, scale) in zip(part, (student, teacher), strict=True)
        ]
        return divergence(logits[0], logits[1], beta, temperature)

    return _in_blocks(apart, (student[0], teacher[0]), block)


def of_top_k(
    student: tuple[jax.Array, jax.Array, float],
    ids: Int[Array, "B T K"],
    logps: Float[Array, "B T K"],
    beta: float,
    tail: bool = True,
    block: int = TIME_BLOCK,
) -> jax.Array:
    """The divergence [B, T] of a model's states from the teacher's log-probs of its top k tokens `ids`."""
    _, head, scale = student

    def apart(part: tuple[jax.Array, ...]) -> jax.Array:
        x, ids, logps = part
        logits = scale * jnp.einsum("...d,vd->...v", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, -1)
        return on_support(own, logps, beta, tail)

    return _in_blocks(apart, (student[0], ids, logps), block)


def log_sum_squares(student: tuple[jax.Array, jax.Array, float], block: int = TIME_BLOCK) -> jax.Array:
    """log of the sum over the vocabulary of p squared [B, T]: how surely a model predicts (WPO, 2406.11827)."""
    _, head, scale = student

    def apart(part: tuple[jax.Array, ...]) -> jax.Array:
        (x,) = part
        logits = scale * jnp.einsum("...d,vd->...v", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(2 * jax.nn.log_softmax(logits), -1)

    return _in_blocks(apart, (student[0],), block)


def _in_blocks(
    measure: Callable[[tuple[jax.Array, ...]], jax.Array], arrays: tuple[jax.Array, ...], block: int
) -> jax.Array:
    """`measure` of arrays [B, T, ...], about `block` tokens of a device at a time, of which nothing is kept for the
    backward pass. Blocks are of columns, so that rows stay on their devices.
    """
    rows, columns = arrays[0].shape[:2]
    width = min(columns, max(1, block * size_of("batch") // rows))
    padded = [jnp.pad(x, ((0, 0), (0, -columns % width), *[(0, 0)] * (x.ndim - 2))) for x in arrays]
    parts = tuple(jnp.moveaxis(x.reshape(rows, -1, width, *x.shape[2:]), 1, 0) for x in padded)
    found = jax.lax.map(jax.checkpoint(measure), parts)
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :columns]
