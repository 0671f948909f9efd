"""Slots of the decode cache and who sits in them.

A slot is one row of the decode cache. Its first columns hold the prompt's keys; the others are a ring that all slots
write at the same place, so that a row seated late costs nothing: columns know their own positions and segments
(model/cache.py), and a seat starts by declaring its ring columns empty.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp

from infer.continuation import Prefixes
from infer.draft import DraftState, empty_draft
from infer.plan import Plan
from infer.prefill import Prompts, RecurrentOutput, new_cache
from infer.thinking import Thinking, begin_thinking
from model.cache import Cache
from model.lm import Model
from model.sharding import whole_rows


@flax.struct.dataclass
class Slots:
    """Decode state of B slots and the output of all N samples.

    `sample` [B] the sample seated (N = none); `count` [B] tokens emitted; `done` [B]; `tokens`, `logps`, `depths`
    [B, T], `routes` [B, T, layers, k] of the samples seated; `out_*` [N, ...] those finished; `queue` [lanes] how many
    of each lane's samples were seated; `accepted`, `drafted` guesses; `thinking` where there is a budget.
    """

    cache: Cache
    hidden: jax.Array
    draft: DraftState | None
    recurrent: RecurrentOutput | None
    sample: jax.Array
    count: jax.Array
    done: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logps: jax.Array
    depths: jax.Array | None
    routes: jax.Array | None
    thinking: Thinking | None
    out_tokens: jax.Array
    out_logps: jax.Array
    out_depths: jax.Array | None
    out_routes: jax.Array | None
    out_thinking: Thinking | None
    out_count: jax.Array
    out_stopped: jax.Array
    queue: jax.Array
    step: jax.Array
    accepted: jax.Array
    drafted: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_slots(model: Model, plan: Plan) -> Slots:
    """Slots in which no sample sits."""
    B, N, T = plan.slots, plan.samples, plan.max_new_tokens
    ints, floats = (functools.partial(jnp.zeros, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
    bools = functools.partial(jnp.zeros, dtype=bool)
    hidden = functools.partial(jnp.zeros, (B, model.config.d_model), model.config.dtype)
    length, recurrent = plan.prompt_length + plan.ring, plan.recurrence is not None
    chosen = (model.config.per_layer("ffn").count("moe"), model.config.moe.top_k)
    choices = functools.partial(jnp.zeros, dtype=jnp.int16)
    return Slots(
        cache=new_cache(model, plan, B, length),
        hidden=hidden(),
        draft=empty_draft(model, plan.draft, B, length),
        recurrent=RecurrentOutput(ints((B,)), hidden()) if recurrent else None,
        sample=jnp.full((B,), N, jnp.int32),
        count=ints((B,)),
        done=jnp.ones((B,), bool),
        stopped=bools((B,)),
        tokens=ints((B, T)),
        logps=floats((B, T)),
        depths=ints((B, T)) if recurrent else None,
        routes=choices((B, T, *chosen)) if plan.routes else None,
        thinking=begin_thinking(B, T) if plan.budget else None,
        out_tokens=ints((N, T)),
        out_logps=floats((N, T)),
        out_depths=ints((N, T)) if recurrent else None,
        out_routes=choices((N, T, *chosen)) if plan.routes else None,
        out_thinking=begin_thinking(N, T) if plan.budget else None,
        out_count=ints((N,)),
        out_stopped=bools((N,)),
        queue=ints((plan.lanes,)),
        step=ints(()),
        accepted=ints(()),
        drafted=ints(()),
    )


def seated_in(plan: Plan, sample: jax.Array) -> jax.Array:
    """The samples in the slots [B], any in those that are empty."""
    return jnp.minimum(sample, plan.samples - 1)


def row_of(plan: Plan, ready: Prompts, sample: jax.Array) -> jax.Array:
    """The rows of the prefill that samples [B] start from."""
    number = seated_in(plan, sample)
    return number // plan.group if ready.prefixes is None else ready.prefixes.row[number]


def flush(plan: Plan, state: Slots) -> Slots:
    """Copies what every seated slot has emitted to its sample's output row."""
    inside = jnp.arange(plan.max_new_tokens) < state.count[:, None]
    save = lambda out, rows: out.at[state.sample].set(rows, mode="drop")  # noqa: E731
    depths = None if state.depths is None else save(state.out_depths, jnp.where(inside, state.depths, 0))
    return replace(
        state,
        out_depths=depths,
        out_routes=None if state.routes is None else save(state.out_routes, state.routes),
        out_thinking=jax.tree.map(save, state.out_thinking, state.thinking),
        out_tokens=save(state.out_tokens, jnp.where(inside, state.tokens, 0)),
        out_logps=save(state.out_logps, jnp.where(inside, state.logps, 0)),
        out_count=save(state.out_count, jnp.where(state.done, state.count, 0)),
        out_stopped=save(state.out_stopped, state.stopped),
    )


def seat(plan: Plan, ready: Prompts, state: Slots) -> Slots:
    """Flushes the finished slots and gives them the next samples of the queue, prompt keys included."""
    state = flush(plan, state)
    free = by_lane(plan, state.done)
    turn = state.queue[:, None] + jnp.cumsum(free, 1) - 1
    each = plan.samples // plan.lanes
    new = (free & (turn < each)).reshape(-1)
    turn = (turn + each * jnp.arange(plan.lanes)[:, None]).reshape(-1)
    # A flushed slot that gets no new sample forgets its old one, which is saved already.
    sample = jnp.where(new, turn, jnp.where(state.done, plan.samples, state.sample)).astype(jnp.int32)
    prompts = len(ready.lengths) // plan.lanes
    prompt = by_lane(plan, row_of(plan, ready, sample)) - prompts * jnp.arange(plan.lanes)[:, None]

    def take(fresh: jax.Array, old: jax.Array) -> jax.Array:
        """The prompt's state in the seats that are new; what it does not reach (the ring's columns) stays."""
        prefix = jax.lax.slice(old, [0] * old.ndim, [old.shape[0], *fresh.shape[1:]])
        merged = jnp.where(new.reshape(-1, *[1] * (old.ndim - 1)), rows_in_lanes(plan.lanes, prompt, fresh), prefix)
        return jax.lax.dynamic_update_slice(old, merged, [0] * old.ndim)

    def seated(fresh: Cache, old: Cache) -> Cache:
        cache = jax.tree.map(lambda f, o: take(f, o) if o.ndim else o, fresh, old)
        ring = jnp.arange(cache.segments.shape[1]) >= plan.prompt_length
        return replace(cache, segments=jnp.where(new[:, None] & ring, 0, cache.segments))

    thinking = state.thinking
    if thinking is not None:
        fresh = begin_thinking(*thinking.own.shape)
        thinking = jax.tree.map(lambda f, o: jnp.where(new.reshape(-1, *[1] * (o.ndim - 1)), f, o), fresh, thinking)
    draft = state.draft
    if draft is not None and ready.draft is not None:
        draft = replace(draft, cache=seated(ready.draft, draft.cache), pending=draft.pending & ~new)
    state = replace(
        state,
        cache=seated(ready.cache, state.cache),
        hidden=take(ready.hidden, state.hidden),
        draft=draft,
        thinking=thinking,
        recurrent=jax.tree.map(take, ready.recurrent, state.recurrent),
        sample=sample,
        count=jnp.where(new, 0, state.count),
        done=state.done & ~new,
        stopped=state.stopped & ~new,
        queue=state.queue + by_lane(plan, new).sum(1, dtype=jnp.int32),
    )
    if ready.prefixes is None:
        return state
    state = _after_prefixes(plan, ready.prefixes, state, new)
    if state.routes is None or ready.routes is None:
        return state
    routes = _prefix_routes(plan, rows_in_lanes(plan.lanes, prompt, ready.routes), state)
    return replace(state, routes=jnp.where(new.reshape(-1, 1, 1, 1), routes, state.routes))


def _after_prefixes(plan: Plan, prefixes: Prefixes, state: Slots, new: jax.Array) -> Slots:
    """The new seats with what the prefill has read of their samples' prefixes; ended samples are done at once."""
    mine = jax.tree.map(lambda x: x[seated_in(plan, state.sample)], prefixes)
    return replace(
        state,
        tokens=jnp.where(new[:, None], mine.tokens, state.tokens),
        logps=jnp.where(new[:, None], mine.logps, state.logps),
        depths=None if state.depths is None else jnp.where(new[:, None], mine.depth, state.depths),
        count=jnp.where(new, mine.start, state.count),
        done=state.done | (new & mine.done),
        stopped=state.stopped | (new & mine.finished),
    )


def _prefix_routes(plan: Plan, routes: jax.Array, state: Slots) -> jax.Array:
    """The experts taken in the prefill [B, Lp, layers, k] as those of each sample's first tokens [B, T, layers, k]."""
    column = jnp.arange(plan.max_new_tokens) - state.count[:, None]
    taken = jnp.take_along_axis(
        routes, jnp.clip(plan.prompt_length + column, 0, plan.prompt_length - 1)[..., None, None], 1
    )
    return jnp.where((column < 0)[..., None, None], taken, 0)


def rows_in_lanes(lanes: int, rows: jax.Array, x: jax.Array) -> jax.Array:
    """x [N, ...], rows [lanes, R] within a lane -> [lanes x R, ...], of which every lane takes its own."""
    if lanes == 1:
        return whole_rows(x)[rows[0]]
    return jax.vmap(lambda x, rows: x[rows])(x.reshape(lanes, -1, *x.shape[1:]), rows).reshape(-1, *x.shape[1:])


def by_lane(plan: Plan, x: jax.Array) -> jax.Array:
    return x.reshape(plan.lanes, -1)


def waiting(plan: Plan, state: Slots) -> jax.Array:
    """Whether any samples of a lane wait for a seat [lanes]."""
    return state.queue < plan.samples // plan.lanes


def worth_seating(plan: Plan, state: Slots) -> jax.Array:
    """Whether enough slots are free for somebody, next to those that are busy."""
    free = (by_lane(plan, state.done) & waiting(plan, state)[:, None]).sum()
    return free >= jnp.maximum((free + (~state.done).sum()) // 8, 1)
