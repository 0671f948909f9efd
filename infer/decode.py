"""The compiled half of the sampler after the prefill (infer/prefill.py): seat (infer/slots.py), decode.

Everything between two polls of the host is one compiled loop: seat -> decode until enough slots are free -> seat ...

With a draft (infer/draft.py), every step feeds the token just drawn and guesses of those after it. A guess is kept only
if it is the very token that would have been drawn there, so the samples are those of plain decoding; a wrong guess
leaves an empty column behind.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infer.draft import DraftState, Drawn, guess
from infer.drawing import draw
from infer.forcing import Step, steer, take_back
from infer.plan import FEWEST, Plan, shrinks
from infer.prefill import Prompts, recurrence_arguments, recurrent_output
from infer.slots import Slots, by_lane, flush, row_of, rows_in_lanes, seat, seated_in, waiting, worth_seating
from model.lm import Model, Output, Params
from model.sharding import replicate

PER_SLOT = (
    "cache", "hidden", "draft", "recurrent", "sample", "count", "done", "stopped",
    "tokens", "logps", "depths", "routes", "thinking",
)  # fmt: skip
LOOKED_AT = (
    "sample", "count", "done", "stopped", "thinking", "out_tokens", "out_logps", "out_depths", "out_routes",
    "out_thinking", "out_count", "out_stopped", "queue", "step", "accepted", "drafted",
)  # fmt: skip
LONG = 64  # steps that may be left for a smaller program to be worth compiling

Draws = tuple[jax.Array, jax.Array, jax.Array]  # key, numbers of the wave's samples, temperature


def few_left(plan: Plan, state: Slots) -> jax.Array:
    """Whether nobody waits, few slots of any lane are busy, and those may be for long: then `compact` pays."""
    longest = plan.max_new_tokens - jnp.min(jnp.where(state.done, plan.max_new_tokens, state.count))
    busy = (~by_lane(plan, state.done)).sum(1).max()
    few = plan.slots // plan.lanes // max(plan.shrink, 1)
    return ~waiting(plan, state).any() & (busy <= few) & (longest >= LONG)


@functools.partial(jax.jit, static_argnums=(0, 1))
def compact(slots: int, lanes: int, state: Slots) -> Slots:
    """The busy slots, and as many others as make up `slots`, after all that the others held was saved."""
    rows = jnp.argsort(state.done.reshape(lanes, -1), stable=True)[:, : slots // lanes]
    take = functools.partial(rows_in_lanes, lanes, rows)
    kept = {name: jax.tree.map(lambda x: take(x) if x.ndim else x, getattr(state, name)) for name in PER_SLOT}
    return replace(state, **kept)


def shrunk(plan: Plan, state: Slots) -> tuple[Plan, Slots]:
    """The samples that are left in fewer slots, where that pays, and the plan for them."""
    while plan.shrink and not finished(state, plan) and few_left(plan, state):
        slots = max(plan.slots // plan.lanes // plan.shrink, -(-FEWEST // plan.lanes)) * plan.lanes
        state = compact(slots, plan.lanes, state)
        plan = replace(plan, slots=slots, shrink=shrinks(slots, plan.lanes, plan.shrink))
    return plan, state


def finished(state: Slots, plan: Plan) -> bool:
    """Whether all samples are."""
    return bool(state.done.all() & ~waiting(plan, state).any())


class Run(NamedTuple):
    """What all steps of a wave read."""

    model: Model
    plan: Plan
    params: Params
    ready: Prompts
    draws: Draws


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(4,))
def decode(
    model: Model,
    plan: Plan,
    params: Params,
    ready: Prompts,
    state: Slots,
    draws: Draws,
    limit: jax.Array,
) -> Slots:
    """Runs at most `limit` steps: seats, then decodes until enough slots are free to seat again or all is done.

    Where the plan shrinks, it also ends once few slots are busy.
    """
    last, run = state.step + limit, Run(model, plan, params, ready, draws)

    def more(state: Slots) -> jax.Array:
        return ~worth_seating(plan, state) & ~state.done.all() & (state.step < last) & ~ends(state)

    def round_(state: Slots) -> Slots:
        state = seat(plan, ready, state)
        return jax.lax.while_loop(more, functools.partial(_step, run), state)

    def unfinished(state: Slots) -> jax.Array:
        return (waiting(plan, state).any() | ~state.done.all()) & (state.step < last) & ~ends(state)

    def ends(state: Slots) -> jax.Array:
        return few_left(plan, state) if plan.shrink else jnp.zeros((), bool)

    state = flush(plan, jax.lax.while_loop(unfinished, round_, state))
    return replace(state, **{name: replicate(getattr(state, name)) for name in LOOKED_AT})


def _step(run: Run, state: Slots) -> Slots:
    """Every slot draws a token from its last hidden state and feeds it back; finished slots idle.

    With a draft, guesses of what follows are fed as well, and emitted as long as they are what is drawn.
    """
    model, plan, params, ready, _ = run
    live = ~state.done
    following = _draw(run, state)
    if following.back is not None and not plan.draft:
        state = take_back(plan, state, jnp.where(live, following.back, 0))
    prompt = row_of(plan, ready, state.sample)
    position = ready.lengths[prompt] + state.count
    if ready.prefixes is not None:
        position -= ready.prefixes.start[seated_in(plan, state.sample)]
    column = plan.prompt_length + (state.step * plan.width) % plan.ring
    here = (jnp.arange(plan.max_new_tokens) == state.count[:, None]) & live[:, None]
    state = _emit(run, state, following, live)
    fed, draft = following.tokens[:, None], state.draft
    if plan.draft:
        drawn = Drawn(state.hidden, following.tokens, position, live, column)
        guesses, draft, cache = guess(model, plan.draft, params, draft, state.cache, drawn)
        fed, state = jnp.concatenate([fed, guesses], 1), replace(state, cache=cache)
    options = recurrence_arguments(plan, None if ready.budget is None else ready.budget[prompt])
    if plan.recurrence and plan.recurrence.warm and state.recurrent is not None:
        options["state"] = state.recurrent.state[:, None]
    out = model.apply(
        params,
        fed,
        positions=position[:, None] + jnp.arange(plan.width),
        segments=jnp.broadcast_to(live[:, None], fed.shape).astype(jnp.int32),
        cache=replace(state.cache, index=column),
        **options,
    )
    assert out.cache is not None
    hidden, recurrent = out.hidden[:, 0], recurrent_output(plan, model, params, out, 0)
    if plan.columns:
        # Samples that wait are gone on from later.
        hidden, recurrent = where_rows(live, (hidden, recurrent), (state.hidden, state.recurrent))
    if state.routes is not None and out.routes is not None:
        # Of the token just emitted: it is fed, and so sent to experts, in this pass.
        taken = jnp.where(here[..., None, None], out.routes.astype(jnp.int16), state.routes)
        state = replace(state, routes=taken)
    state = replace(state, cache=out.cache, hidden=hidden, step=state.step + 1, recurrent=recurrent)
    return _check_guesses(run, state, draft, guesses, out, column) if plan.draft else state


def where_rows(chosen: jax.Array, new: Any, old: Any) -> Any:
    """The rows of two like trees: of `new` where `chosen` [B], else of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(chosen.reshape(-1, *[1] * (o.ndim - 1)), n, o), new, old)


def _check_guesses(
    run: Run, state: Slots, draft: DraftState | None, guesses: jax.Array, out: Output, column: jax.Array
) -> Slots:
    """Emits the guesses [B, G] that are what is drawn, up to the first that is not; the other columns become empty."""
    kept, before = jnp.ones(guesses.shape[:1], bool), out.hidden[:, 0]
    segments = state.cache.segments
    for g in range(guesses.shape[1]):
        following = _draw(run, state)
        offered = kept & ~state.done
        kept = offered & (following.tokens == guesses[:, g])
        segments = segments.at[:, column + 1 + g].set(kept.astype(jnp.int32))
        state = _emit(run, state, following, kept)
        before = jnp.where(kept[:, None], state.hidden, before)
        state = replace(
            state,
            hidden=jnp.where(kept[:, None], out.hidden[:, g + 1], state.hidden),
            accepted=state.accepted + kept.sum(),
            drafted=state.drafted + offered.sum(),
        )
    if draft is not None:
        draft = replace(draft, hidden=before, token=guesses[:, -1], pending=kept)
    return replace(state, cache=replace(state.cache, segments=segments), draft=draft)


def _draw(run: Run, state: Slots) -> Step:
    """The token number `count` of every seated sample, with the noise that belongs to it.

    Where a continuation or a thinking budget gives the token, that one.
    """
    model, plan, params, ready, (key, of_samples, temperature) = run
    seated = seated_in(plan, state.sample)
    # Tokens that were taken back had noise of their own, which is not drawn with again.
    number = state.count if state.thinking is None else state.count + state.thinking.dropped
    keys = jax.vmap(lambda n, t: jax.random.fold_in(jax.random.fold_in(key, n), t))(of_samples[seated], number)
    tokens, logps = draw(model.logits(params, state.hidden), keys, temperature, plan.truncation)
    if ready.forcing is not None:
        return steer(plan, ready.forcing, state, (tokens, logps))
    if ready.prefixes is None:
        return Step(tokens, logps)
    place = (seated, jnp.minimum(state.count, plan.max_new_tokens - 1))
    given = ready.prefixes.given[place]
    return Step(
        jnp.where(given, ready.prefixes.tokens[place], tokens),
        jnp.where(given, ready.prefixes.logps[place], logps),
    )


def _emit(run: Run, state: Slots, following: Step, emitted: jax.Array) -> Slots:
    """Appends one token to the samples where `emitted` [B], and ends those it completes."""
    plan, prefixes, (tokens, logps, own, thinking, _) = run.plan, run.ready.prefixes, following
    here = (jnp.arange(plan.max_new_tokens) == state.count[:, None]) & emitted[:, None]
    depths = state.depths
    if depths is not None and state.recurrent is not None:
        depths = jnp.where(here, state.recurrent.depth[:, None], depths)
    count = state.count + emitted
    stopped = emitted & jnp.isin(tokens, jnp.asarray(plan.stop_ids, jnp.int32))
    if prefixes is not None:
        stopped &= state.count >= prefixes.length[seated_in(plan, state.sample)]
    most = plan.max_new_tokens if prefixes is None else prefixes.until[seated_in(plan, state.sample)]
    used = count
    if thinking is not None and own is not None:
        stopped &= own
        used += jnp.where(emitted, thinking.dropped, 0)
        thinking = replace(thinking, own=jnp.where(here, own[:, None], thinking.own))
        thinking = where_rows(emitted, thinking, state.thinking)
    return replace(
        state,
        tokens=jnp.where(here, tokens[:, None], state.tokens),
        logps=jnp.where(here, logps[:, None], state.logps),
        depths=depths,
        count=count,
        stopped=state.stopped | stopped,
        thinking=thinking,
        done=state.done | stopped | (used >= most),
    )
