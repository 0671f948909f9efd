"""Budget forcing in the compiled loop: a sample thinks, then answers, and a queue of forced tokens joins the two."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from infer.budget import PARTS, Forcing
from infer.plan import Plan
from infer.slots import Slots, seated_in
from infer.thinking import THINKING, Thinking

NEWLINE, END, FINAL, REST, WAIT = range(len(PARTS))


class Step(NamedTuple):
    """What comes next in every slot [B]: a token, its log-probability, and with a budget whether it is the policy's,
    how the sample then thinks, and how many tokens before it are taken back.
    """

    tokens: jax.Array
    logps: jax.Array
    own: jax.Array | None = None
    thinking: Thinking | None = None
    back: jax.Array | None = None


def steer(plan: Plan, forcing: Forcing, state: Slots, drawn: tuple[jax.Array, jax.Array]) -> Step:
    """What comes next where `drawn` (tokens, log-probs) [B] would: that, or what the budget forces (2501.19393, 3.1).

    A thought that ends by itself waits instead where it is to and may, and else goes on with the rest of its
    delimiter; one that has spent its budget is cut.
    """
    at, seated = forcing.at, seated_in(plan, state.sample)
    most, waits = forcing.most[seated], forcing.waits[seated]
    thinking, (tokens, logps) = state.thinking, drawn
    assert thinking is not None
    queued = thinking.head < thinking.tail
    thinks = ~queued & (thinking.answer == THINKING)
    read, complete = forcing.progress[thinking.read, tokens].astype(jnp.int32), forcing.progress.shape[0]
    ended = jnp.isin(tokens, jnp.asarray(plan.stop_ids, jnp.int32))
    closes = thinks & ~ended & (read >= complete)
    before = taken_back(forcing, state, jnp.where(closes, read - complete, 0))
    waiting = (closes | (thinks & ended)) & (thinking.waited < waits)
    replaced = thinks & ended & ~waiting
    goes_on = thinks & ~ended & ~closes
    cost = state.recurrent.depth if plan.budget == "iterations" and state.recurrent is not None else 1
    spent = thinking.spent + jnp.where(goes_on, cost, 0) - (before if plan.budget == "tokens" else 0)
    cut = goes_on & (spent >= most)
    head, tail = thinking.head + queued, thinking.tail
    for where, first, last in (
        (waiting, at[WAIT], at[-1]),
        (replaced, at[END], at[FINAL]),
        (closes & ~waiting, at[REST], at[WAIT]),
        (cut, jnp.where(forcing.newline[tokens], at[END], at[NEWLINE]), at[REST]),
    ):
        head, tail = jnp.where(where, first, head), jnp.where(where, last, tail)
    forced = queued | waiting | replaced
    place = jnp.where(queued, thinking.head, head)
    tokens = jnp.where(forced, forcing.script[jnp.minimum(place, len(forcing.script) - 1)], tokens)
    head += waiting | replaced
    back = jnp.where(waiting, before, 0)
    count = state.count - back + 1
    answers = replaced | (closes & ~waiting) | cut
    return Step(
        tokens,
        jnp.where(forced, 0.0, logps),
        ~forced,
        replace(
            thinking,
            thought=thinking.thought + goes_on - before,
            spent=spent,
            waited=thinking.waited + waiting,
            read=jnp.where(goes_on, jnp.minimum(read, complete - 1), 0),
            head=head,
            tail=tail,
            answer=jnp.where(answers, count + tail - head, thinking.answer),
            dropped=thinking.dropped + back,
        ),
        back,
    )


def taken_back(forcing: Forcing, state: Slots, characters: jax.Array) -> jax.Array:
    """How many of the last tokens [B] lie wholly within the last `characters` [B]: the delimiter's before its last."""
    back = jnp.arange(1, forcing.progress.shape[0])
    last = jnp.take_along_axis(state.tokens, jnp.maximum(state.count[:, None] - back, 0), 1)
    width = forcing.width[last]
    reach, start = jnp.cumsum(width, 1), jnp.cumsum(width, 1) - width
    inside = (reach <= characters[:, None]) & (start < characters[:, None])
    return (inside & (back <= state.count[:, None])).sum(1, dtype=jnp.int32)


def take_back(plan: Plan, state: Slots, back: jax.Array) -> Slots:
    """The slots without their last `back` [B] tokens, whose columns of the cache become empty."""
    ring = jnp.arange(state.cache.segments.shape[1]) - plan.prompt_length
    ago = (state.step - 1 - ring) % plan.ring  # steps since a column was written, from 0 up
    segments = jnp.where((ring >= 0) & (ago < back[:, None]), 0, state.cache.segments)
    return replace(state, count=state.count - back, cache=replace(state.cache, segments=segments))
