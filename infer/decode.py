"""The compiled half of the sampler after the prefill (infer/prefill.py): seat, decode.

A slot is one row of the decode cache. Its first columns hold the prompt's keys; the others are a ring that all slots
write at the same place, so that a row seated late costs nothing: columns know their own positions and segments
(model/cache.py), and a seat starts by declaring its ring columns empty. Everything between two looks of the host is one
compiled loop: seat -> decode until enough slots are free -> seat ...

With a draft (infer/draft.py), every step feeds the token just drawn and guesses of those after it. A guess is kept only
if it is the very token that would have been drawn there, so the samples are those of plain decoding; a wrong guess
leaves an empty column behind.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp

from infer.draft import Draft, empty_draft, guess
from infer.partial import PartialSamples
from infer.prefill import Plan, Prompts, RecurrentOutput, new_cache, recurrence_arguments, recurrent_output
from infer.sampling import draw
from model.cache import Cache
from model.lm import Model, Output, Params
from model.sharding import replicate, whole_rows

PER_SLOT = (
    "cache", "hidden", "draft", "recurrent", "sample", "count", "done", "stopped",
    "tokens", "logps", "depths", "routes",
)  # fmt: skip
LOOKED_AT = (
    "sample", "count", "done", "stopped", "out_tokens", "out_logps", "out_depths", "out_routes", "out_count",
    "out_stopped", "queue", "step", "accepted", "drafted",
)  # fmt: skip
FEWEST = 4  # slots, below which nothing is gained
LONG = 64  # steps that may be left for a smaller program to be worth compiling

Draws = tuple[jax.Array, jax.Array, jax.Array]  # key, numbers of the wave's samples, temperature


@flax.struct.dataclass
class Slots:
    """Decode state of B slots and the output of all N samples.

    `sample` [B] the sample seated (N = none); `count` [B] tokens emitted; `done` [B]; `tokens`, `logps`, `depths`
    [B, T], `routes` [B, T, layers, k] of the samples seated; `out_*` [N, ...] those finished; `queue` [lanes] how many
    of each lane's samples were seated; `accepted`, `drafted` guesses.
    """

    cache: Cache
    hidden: jax.Array
    draft: Draft | None
    recurrent: RecurrentOutput | None
    sample: jax.Array
    count: jax.Array
    done: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logps: jax.Array
    depths: jax.Array | None
    routes: jax.Array | None
    out_tokens: jax.Array
    out_logps: jax.Array
    out_depths: jax.Array | None
    out_routes: jax.Array | None
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
    length, thinks = plan.prompt_length + plan.ring, plan.recurrence is not None
    chosen = (model.config.per_layer("ffn").count("moe"), model.config.moe.top_k)
    choices = functools.partial(jnp.zeros, dtype=jnp.int16)
    return Slots(
        cache=new_cache(model, plan, B, length),
        hidden=hidden(),
        draft=empty_draft(model, plan.draft, B, length),
        recurrent=RecurrentOutput(ints((B,)), hidden()) if thinks else None,
        sample=jnp.full((B,), N, jnp.int32),
        count=ints((B,)),
        done=jnp.ones((B,), bool),
        stopped=bools((B,)),
        tokens=ints((B, T)),
        logps=floats((B, T)),
        depths=ints((B, T)) if thinks else None,
        routes=choices((B, T, *chosen)) if plan.routes else None,
        out_tokens=ints((N, T)),
        out_logps=floats((N, T)),
        out_depths=ints((N, T)) if thinks else None,
        out_routes=choices((N, T, *chosen)) if plan.routes else None,
        out_count=ints((N,)),
        out_stopped=bools((N,)),
        queue=ints((plan.lanes,)),
        step=ints(()),
        accepted=ints(()),
        drafted=ints(()),
    )


def few_left(plan: Plan, state: Slots) -> jax.Array:
    """Whether nobody waits, few slots of any lane are busy, and those may be for long: then `compact` pays."""
    longest = plan.max_new_tokens - jnp.min(jnp.where(state.done, plan.max_new_tokens, state.count))
    busy = (~_by_lane(plan, state.done)).sum(1).max()
    few = plan.slots // plan.lanes // max(plan.shrink, 1)
    return ~_waiting(plan, state).any() & (busy <= few) & (longest >= LONG)


@functools.partial(jax.jit, static_argnums=(0, 1))
def compact(slots: int, lanes: int, state: Slots) -> Slots:
    """The busy slots, and as many others as make up `slots`, after all that the others held was saved."""
    rows = jnp.argsort(state.done.reshape(lanes, -1), stable=True)[:, : slots // lanes]
    take = functools.partial(_rows, lanes, rows)
    kept = {name: jax.tree.map(lambda x: take(x) if x.ndim else x, getattr(state, name)) for name in PER_SLOT}
    return replace(state, **kept)


def shrunk(plan: Plan, state: Slots) -> tuple[Plan, Slots]:
    """The samples that are left in fewer slots, where that pays, and the plan for them."""
    while plan.shrink and not finished(state, plan) and few_left(plan, state):
        slots = max(plan.slots // plan.lanes // plan.shrink, -(-FEWEST // plan.lanes)) * plan.lanes
        state = compact(slots, plan.lanes, state)
        plan = replace(plan, slots=slots, shrink=shrinks(slots, plan.lanes, plan.shrink))
    return plan, state


def shrinks(slots: int, lanes: int, times: int) -> int:
    """How many times fewer so many slots may become; 0 where they are few as it is."""
    return times if slots // lanes >= times and slots // lanes > -(-FEWEST // lanes) else 0


def finished(state: Slots, plan: Plan) -> bool:
    """Whether all samples are."""
    return bool(state.done.all() & ~_waiting(plan, state).any())


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
    last = state.step + limit

    def more(state: Slots) -> jax.Array:
        return ~_worth_seating(plan, state) & ~state.done.all() & (state.step < last) & ~ends(state)

    def round_(state: Slots) -> Slots:
        state = _seat(plan, ready, state)
        return jax.lax.while_loop(more, lambda s: _step(model, plan, params, ready, s, draws), state)

    def unfinished(state: Slots) -> jax.Array:
        return (_waiting(plan, state).any() | ~state.done.all()) & (state.step < last) & ~ends(state)

    def ends(state: Slots) -> jax.Array:
        return few_left(plan, state) if plan.shrink else jnp.zeros((), bool)

    state = _flush(plan, jax.lax.while_loop(unfinished, round_, state))
    return replace(state, **{name: replicate(getattr(state, name)) for name in LOOKED_AT})


def _step(model: Model, plan: Plan, params: Params, ready: Prompts, state: Slots, draws: Draws) -> Slots:
    """Every slot draws a token from its last hidden state and feeds it back; finished slots idle.

    With a draft, guesses of what follows are fed as well, and emitted as long as they are what is drawn.
    """
    live = ~state.done
    tokens, logps = _draw(model, plan, params, state.hidden, state, state.count, draws)
    prompt = _prompt_of(plan, ready, state.sample)
    position = ready.lengths[prompt] + state.count
    if ready.begun is not None:
        position -= ready.begun.lengths[jnp.minimum(state.sample, plan.samples - 1)]
    column = plan.prompt_length + (state.step * plan.width) % plan.ring
    here = (jnp.arange(plan.max_new_tokens) == state.count[:, None]) & live[:, None]
    state = _emit(plan, state, tokens, logps, live)
    fed, draft = tokens[:, None], state.draft
    if plan.draft:
        around = (state.hidden, tokens, position, live, column)
        guesses, draft, cache = guess(model, plan.draft, params, draft, state.cache, *around)
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
    recurrent = recurrent_output(plan, model, params, out, 0)
    if state.routes is not None and out.routes is not None:
        # Of the token just emitted: it is fed, and so sent to experts, in this pass.
        taken = jnp.where(here[..., None, None], out.routes.astype(jnp.int16), state.routes)
        state = replace(state, routes=taken)
    state = replace(state, cache=out.cache, hidden=out.hidden[:, 0], step=state.step + 1, recurrent=recurrent)
    return _check_guesses(model, plan, params, state, draft, guesses, out, column, draws) if plan.draft else state


def _check_guesses(
    model: Model,
    plan: Plan,
    params: Params,
    state: Slots,
    draft: Draft | None,
    guesses: jax.Array,
    out: Output,
    column: jax.Array,
    draws: Draws,
) -> Slots:
    """Emits the guesses [B, G] that are what is drawn, up to the first that is not; the other columns become empty."""
    kept, before = jnp.ones(guesses.shape[:1], bool), out.hidden[:, 0]
    segments = state.cache.segments
    for g in range(guesses.shape[1]):
        tokens, logps = _draw(model, plan, params, state.hidden, state, state.count, draws)
        offered = kept & ~state.done
        kept = offered & (tokens == guesses[:, g])
        segments = segments.at[:, column + 1 + g].set(kept.astype(jnp.int32))
        state = _emit(plan, state, tokens, logps, kept)
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


def _draw(
    model: Model,
    plan: Plan,
    params: Params,
    hidden: jax.Array,
    state: Slots,
    count: jax.Array,
    draws: Draws,
) -> tuple[jax.Array, jax.Array]:
    """The token number `count` of every seated sample, with the noise that belongs to it: (tokens, log-probs) [B]."""
    key, of_samples, temperature = draws
    numbers = of_samples[jnp.minimum(state.sample, plan.samples - 1)]
    keys = jax.vmap(lambda n, t: jax.random.fold_in(jax.random.fold_in(key, n), t))(numbers, count)
    return draw(model.logits(params, hidden), keys, temperature, plan.sampling)


def _emit(plan: Plan, state: Slots, tokens: jax.Array, logps: jax.Array, emitted: jax.Array) -> Slots:
    """Appends one token to the samples where `emitted` [B], and ends those it completes."""
    here = (jnp.arange(plan.max_new_tokens) == state.count[:, None]) & emitted[:, None]
    depths = state.depths
    if depths is not None and state.recurrent is not None:
        depths = jnp.where(here, state.recurrent.depth[:, None], depths)
    count = state.count + emitted
    stopped = emitted & jnp.isin(tokens, jnp.asarray(plan.stop_ids, jnp.int32))
    return replace(
        state,
        tokens=jnp.where(here, tokens[:, None], state.tokens),
        logps=jnp.where(here, logps[:, None], state.logps),
        depths=depths,
        count=count,
        stopped=state.stopped | stopped,
        done=state.done | stopped | (count >= plan.max_new_tokens),
    )


def _prompt_of(plan: Plan, ready: Prompts, sample: jax.Array) -> jax.Array:
    number = jnp.minimum(sample, plan.samples - 1)
    return number // plan.group if ready.begun is None else ready.begun.row[number]


def _flush(plan: Plan, state: Slots) -> Slots:
    """Copies what every seated slot has emitted to its sample's output row."""
    inside = jnp.arange(plan.max_new_tokens) < state.count[:, None]
    save = lambda out, rows: out.at[state.sample].set(rows, mode="drop")  # noqa: E731
    depths = None if state.depths is None else save(state.out_depths, jnp.where(inside, state.depths, 0))
    return replace(
        state,
        out_depths=depths,
        out_routes=None if state.routes is None else save(state.out_routes, state.routes),
        out_tokens=save(state.out_tokens, jnp.where(inside, state.tokens, 0)),
        out_logps=save(state.out_logps, jnp.where(inside, state.logps, 0)),
        out_count=save(state.out_count, jnp.where(state.done, state.count, 0)),
        out_stopped=save(state.out_stopped, state.stopped),
    )


def _seat(plan: Plan, ready: Prompts, state: Slots) -> Slots:
    """Flushes the finished slots and gives them the next samples of the queue, prompt keys included."""
    state = _flush(plan, state)
    free = _by_lane(plan, state.done)
    turn = state.queue[:, None] + jnp.cumsum(free, 1) - 1
    each = plan.samples // plan.lanes
    new = (free & (turn < each)).reshape(-1)
    turn = (turn + each * jnp.arange(plan.lanes)[:, None]).reshape(-1)
    # A flushed slot that gets no new sample forgets its old one, which is saved already.
    sample = jnp.where(new, turn, jnp.where(state.done, plan.samples, state.sample)).astype(jnp.int32)
    prompts = len(ready.lengths) // plan.lanes
    prompt = _by_lane(plan, _prompt_of(plan, ready, sample)) - prompts * jnp.arange(plan.lanes)[:, None]

    def take(fresh: jax.Array, old: jax.Array) -> jax.Array:
        """The prompt's state in the seats that are new; what it does not reach (the ring's columns) stays."""
        prefix = jax.lax.slice(old, [0] * old.ndim, [old.shape[0], *fresh.shape[1:]])
        merged = jnp.where(new.reshape(-1, *[1] * (old.ndim - 1)), _rows(plan.lanes, prompt, fresh), prefix)
        return jax.lax.dynamic_update_slice(old, merged, [0] * old.ndim)

    def seated(fresh: Cache, old: Cache) -> Cache:
        cache = jax.tree.map(lambda f, o: take(f, o) if o.ndim else o, fresh, old)
        ring = jnp.arange(cache.segments.shape[1]) >= plan.prompt_length
        return replace(cache, segments=jnp.where(new[:, None] & ring, 0, cache.segments))

    draft = state.draft
    if draft is not None and ready.draft is not None:
        draft = replace(draft, cache=seated(ready.draft, draft.cache), pending=draft.pending & ~new)
    state = replace(
        state,
        cache=seated(ready.cache, state.cache),
        hidden=take(ready.hidden, state.hidden),
        draft=draft,
        recurrent=jax.tree.map(take, ready.recurrent, state.recurrent),
        sample=sample,
        count=jnp.where(new, 0, state.count),
        done=state.done & ~new,
        stopped=state.stopped & ~new,
        queue=state.queue + _by_lane(plan, new).sum(1, dtype=jnp.int32),
    )
    return state if ready.begun is None else _go_on(plan, ready.begun, state, new)


def _go_on(plan: Plan, begun: PartialSamples, state: Slots, new: jax.Array) -> Slots:
    """The new seats with what their samples have said before; those that had ended are done at once."""
    mine = jax.tree.map(lambda x: x[jnp.minimum(state.sample, plan.samples - 1)], begun)
    return replace(
        state,
        tokens=jnp.where(new[:, None], mine.tokens, state.tokens),
        logps=jnp.where(new[:, None], mine.logps, state.logps),
        count=jnp.where(new, mine.lengths, state.count),
        done=state.done | (new & mine.done),
        stopped=state.stopped | (new & mine.finished),
    )


def _rows(lanes: int, rows: jax.Array, x: jax.Array) -> jax.Array:
    """x [N, ...], rows [lanes, R] within a lane -> [lanes x R, ...], of which every lane takes its own."""
    if lanes == 1:
        return whole_rows(x)[rows[0]]
    return jax.vmap(lambda x, rows: x[rows])(x.reshape(lanes, -1, *x.shape[1:]), rows).reshape(-1, *x.shape[1:])


def _by_lane(plan: Plan, x: jax.Array) -> jax.Array:
    return x.reshape(plan.lanes, -1)


def _waiting(plan: Plan, state: Slots) -> jax.Array:
    """Whether any samples of a lane wait for a seat [lanes]."""
    return state.queue < plan.samples // plan.lanes


def _worth_seating(plan: Plan, state: Slots) -> jax.Array:
    """Whether enough slots are free for somebody, next to those that are busy."""
    free = (_by_lane(plan, state.done) & _waiting(plan, state)[:, None]).sum()
    return free >= jnp.maximum((free + (~state.done).sum()) // 8, 1)
