"""Recurrent depth in training and full passes.

Iterations without gradient, as many as asked for at run time, then a fixed number with it, each rematerialised: neither
the number of compilations nor the memory grows with the depth.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from model.context import Context
from model.depth.core import Depth, Recurred, Step, add_reports, at_iteration, mean_losses, pad_inactive_rows
from model.depth.measures import change


def unrolled(
    step: Step, variables: Any, e: jax.Array, s: jax.Array, context: Context, depth: Depth, grad_steps: int
) -> Recurred:
    """Runs the core `depth` times; the last `grad_steps` iterations of each row carry gradient.

    Rows of different depth end together: the shallower ones start later, and all their last iterations lie inside.
    """
    fixed = isinstance(depth, int)
    longest = depth if isinstance(depth, int) else depth.max()
    steps = min(grad_steps, depth) if isinstance(depth, int) else grad_steps
    skipped = longest - steps if fixed else jnp.maximum(longest - steps, 0)
    by_row = None if fixed or jnp.ndim(depth) == 0 else longest - depth
    shapes = jax.eval_shape(lambda: step(variables, e, s, at_iteration(context, 0), None)[2])
    blank = (s, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), jnp.zeros((2,)))

    def once(variables: Any, e: jax.Array, carry: Any, i: jax.Array | int, losses: bool) -> Any:
        s, reports, _ = carry
        active = None if by_row is None else jnp.asarray(i) >= by_row
        active_context = context if active is None else pad_inactive_rows(context, active)
        active_context = at_iteration(active_context, i if by_row is None else i - by_row)
        new, _, reported = step(variables, e, s, active_context, None)
        new = new if active is None else jnp.where(active[:, None, None], new, s)
        return new, add_reports(reports, reported, losses), change(new, s, active_context.segments)

    carry = blank
    if not fixed or skipped:
        still = jax.lax.stop_gradient((variables, e))
        body = lambda i, carry: once(*still, carry, i, losses=False)  # noqa: E731
        carry = jax.lax.fori_loop(0, skipped, body, jax.lax.stop_gradient(blank))

    @jax.checkpoint
    def learning(variables: Any, e: jax.Array, carry: Any, i: jax.Array) -> Any:
        if fixed:
            return once(variables, e, carry, i, losses=True)
        return jax.lax.cond(i < longest, lambda c: once(variables, e, c, i, losses=True), lambda c: c, carry)

    carry, _ = jax.lax.scan(
        lambda carry, j: (learning(variables, e, carry, skipped + j), None), carry, jnp.arange(steps)
    )
    s, reports, moved = carry
    counted = mean_losses(reports, jnp.clip(longest, 1, max(steps, 1)))
    return Recurred(s, None, counted, jnp.broadcast_to(jnp.asarray(depth), s.shape[:1]), moved)
