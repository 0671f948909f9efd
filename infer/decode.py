"""The compiled half of the sampler: prefill, seat, decode.

A slot is one row of the decode cache. Its first columns hold the prompt's keys; the others are a ring that all slots
write at the same place, so that a row seated late costs nothing: columns know their own positions and segments
(model/cache.py), and a seat starts by declaring its ring columns empty. Everything between two looks of the host is one
compiled loop: seat -> decode until enough slots are free -> seat ...

With a draft, every step feeds two tokens: the one just drawn, and the one after it as the first module of multi-token
prediction guesses it. The guess is kept only if it is the very token that would have been drawn there, so the samples
are those of plain decoding; a wrong guess leaves an empty column behind.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import flax.struct
import jax
import jax.numpy as jnp

from infer.sampling import Sampling, draw
from model.cache import Cache
from model.lm import Model, Params

Draws = tuple[jax.Array, jax.Array, jax.Array]  # key, number of the wave's first sample, temperature
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Plan:
    """Static shapes and rules of one compiled sampler."""

    slots: int
    samples: int
    group: int
    prompt_length: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    sampling: Sampling
    draft: bool = False

    @property
    def width(self) -> int:
        """Tokens fed per step, and so columns written."""
        return 2 if self.draft else 1

    @property
    def ring(self) -> int:
        """Columns that a slot needs at most: every step keeps at least one token."""
        return self.width * self.max_new_tokens


@flax.struct.dataclass
class Draft:
    """What the drafting module remembers: its own `cache`, and of an accepted guess the state before it, `hidden`
    [B, D], its `token` [B] and whether there is one, `pending` [B]: the module sees that pair only now.
    """

    cache: Cache
    hidden: jax.Array
    token: jax.Array
    pending: jax.Array


@flax.struct.dataclass
class Prompts:
    """What the prefill leaves for the seats: `cache` with P rows of Lp columns, `hidden` [P, D] of the last token, and
    the drafting module's cache.
    """

    cache: Cache
    hidden: jax.Array
    lengths: jax.Array
    draft: Cache | None


@flax.struct.dataclass
class Slots:
    """Decode state of B slots and the output of all N samples.

    `sample` [B] the sample seated (N = none); `count` [B] tokens emitted; `done` [B]; `tokens`, `logps` [B, T] of the
    samples seated; `out_*` [N, ...] those finished; `queue` the next sample to seat; `accepted`, `drafted` guesses.
    """

    cache: Cache
    hidden: jax.Array
    draft: Draft | None
    sample: jax.Array
    count: jax.Array
    done: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logps: jax.Array
    out_tokens: jax.Array
    out_logps: jax.Array
    out_count: jax.Array
    out_stopped: jax.Array
    queue: jax.Array
    step: jax.Array
    accepted: jax.Array
    drafted: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(model: Model, plan: Plan, params: Params, tokens: jax.Array, mask: jax.Array) -> Prompts:
    """Runs the prompts through the model, a few at a time: attention scores grow with the square of their length."""

    def some(rows: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array, Cache | None]:
        tokens, mask = rows
        positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
        cache = model.init_cache(len(tokens), plan.prompt_length)
        out = model.apply(params, tokens, positions=positions, segments=mask, cache=cache)
        draft = _prefill_draft(model, params, out.hidden, tokens, positions, mask) if plan.draft else None
        caches = (_per_row(out.cache, len(tokens)), _per_row(draft, len(tokens)))
        return caches[0], out.hidden[:, -1], caches[1]  # type: ignore[return-value]

    size = max(PREFILL_TOKENS // plan.prompt_length, 1)
    blocks, block = -(-len(tokens) // size), -(-len(tokens) // -(-len(tokens) // size))
    if blocks == 1:
        found = some((tokens, mask))
    else:
        rows = jnp.minimum(jnp.arange(blocks * block), len(tokens) - 1).reshape(blocks, block)
        found = jax.tree.map(
            lambda x: x.reshape(blocks * block, *x.shape[2:])[: len(tokens)],
            jax.lax.map(lambda r: some((tokens[r], mask[r])), rows),
        )
    cache, hidden, draft = found
    zero = jnp.zeros((), jnp.int32)
    return Prompts(
        replace(cache, index=zero), hidden, mask.sum(1), None if draft is None else replace(draft, index=zero)
    )


def _prefill_draft(
    model: Model, params: Params, hidden: jax.Array, tokens: jax.Array, positions: jax.Array, mask: jax.Array
) -> Cache | None:
    """The drafting module's cache: it pairs each state with the token after it, which the last one still lacks."""
    following = jnp.roll(tokens, -1, 1)
    cache = model.init_draft_cache(*tokens.shape)
    return model.ahead(params, 0, hidden, following, positions, mask.at[:, -1].set(0), cache).cache


def _per_row(cache: Cache | None, rows: int) -> Cache | None:
    """The cache with an index for every row, so that blocks of rows can be joined."""
    return None if cache is None else replace(cache, index=jnp.zeros((rows,), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_slots(model: Model, plan: Plan) -> Slots:
    """Slots in which no sample sits."""
    B, N, T = plan.slots, plan.samples, plan.max_new_tokens
    ints, floats = (functools.partial(jnp.zeros, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
    bools = functools.partial(jnp.zeros, dtype=bool)
    hidden = functools.partial(jnp.zeros, (B, model.config.d_model), model.config.dtype)
    length = plan.prompt_length + plan.ring
    draft = Draft(model.init_draft_cache(B, length), hidden(), ints((B,)), bools((B,))) if plan.draft else None
    return Slots(
        cache=model.init_cache(B, length),
        hidden=hidden(),
        draft=draft,
        sample=jnp.full((B,), N, jnp.int32),
        count=ints((B,)),
        done=jnp.ones((B,), bool),
        stopped=bools((B,)),
        tokens=ints((B, T)),
        logps=floats((B, T)),
        out_tokens=ints((N, T)),
        out_logps=floats((N, T)),
        out_count=ints((N,)),
        out_stopped=bools((N,)),
        queue=ints(()),
        step=ints(()),
        accepted=ints(()),
        drafted=ints(()),
    )


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
    """Runs at most `limit` steps: seats, then decodes until enough slots are free to seat again or all is done."""
    worth_seating = max(1, plan.slots // 8)
    last = state.step + limit

    def more(state: Slots) -> jax.Array:
        waiting = (state.queue < plan.samples) & (state.done.sum() >= worth_seating)
        return ~waiting & ~state.done.all() & (state.step < last)

    def round_(state: Slots) -> Slots:
        state = _seat(plan, ready, state)
        return jax.lax.while_loop(more, lambda s: _step(model, plan, params, ready, s, draws), state)

    def unfinished(state: Slots) -> jax.Array:
        return ((state.queue < plan.samples) | ~state.done.all()) & (state.step < last)

    return _flush(plan, jax.lax.while_loop(unfinished, round_, state))


def _step(model: Model, plan: Plan, params: Params, ready: Prompts, state: Slots, draws: Draws) -> Slots:
    """Every slot draws a token from its last hidden state and feeds it back; finished slots idle.

    With a draft, the guess after it is fed as well, and emitted if it is what is drawn from the new state.
    """
    live = ~state.done
    tokens, logps = _draw(model, plan, params, state.hidden, state, state.count, draws)
    position = ready.lengths[_prompt_of(plan, state.sample)] + state.count
    column = plan.prompt_length + (state.step * plan.width) % plan.ring
    state = _emit(plan, state, tokens, logps, live)
    fed, draft = tokens[:, None], state.draft
    if draft is not None:
        guess, draft = _guess(model, params, draft, state.hidden, tokens, position, live, column)
        fed = jnp.stack([tokens, guess], 1)
    out = model.apply(
        params,
        fed,
        positions=position[:, None] + jnp.arange(plan.width),
        segments=jnp.broadcast_to(live[:, None], fed.shape).astype(jnp.int32),
        cache=replace(state.cache, index=column),
    )
    assert out.cache is not None
    state = replace(state, cache=out.cache, hidden=out.hidden[:, 0], step=state.step + 1)
    if draft is None:
        return state
    tokens, logps = _draw(model, plan, params, out.hidden[:, 0], state, state.count, draws)
    offered = live & ~state.done
    kept = offered & (tokens == guess)
    segments = out.cache.segments.at[:, column + 1].set(kept.astype(jnp.int32))
    return replace(
        _emit(plan, state, tokens, logps, kept),
        cache=replace(out.cache, segments=segments),
        hidden=jnp.where(kept[:, None], out.hidden[:, 1], out.hidden[:, 0]),
        draft=replace(draft, hidden=out.hidden[:, 0], token=tokens, pending=kept),
        accepted=state.accepted + kept.sum(),
        drafted=state.drafted + offered.sum(),
    )


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
    key, offset, temperature = draws
    numbers = state.sample + offset
    keys = jax.vmap(lambda n, t: jax.random.fold_in(jax.random.fold_in(key, n), t))(numbers, count)
    return draw(model.logits(params, hidden), keys, temperature, plan.sampling)


def _emit(plan: Plan, state: Slots, tokens: jax.Array, logps: jax.Array, emitted: jax.Array) -> Slots:
    """Appends one token to the samples where `emitted` [B], and ends those it completes."""
    here = (jnp.arange(plan.max_new_tokens) == state.count[:, None]) & emitted[:, None]
    count = state.count + emitted
    stopped = emitted & jnp.isin(tokens, jnp.asarray(plan.stop_ids, jnp.int32))
    return replace(
        state,
        tokens=jnp.where(here, tokens[:, None], state.tokens),
        logps=jnp.where(here, logps[:, None], state.logps),
        count=count,
        stopped=state.stopped | stopped,
        done=state.done | stopped | (count >= plan.max_new_tokens),
    )


def _guess(
    model: Model,
    params: Params,
    draft: Draft,
    hidden: jax.Array,
    tokens: jax.Array,
    position: jax.Array,
    live: jax.Array,
    column: jax.Array,
) -> tuple[jax.Array, Draft]:
    """What the drafting module expects after `tokens` [B], which stand at `position` [B]: the likeliest token [B].

    It is fed the pair it missed when its last guess was accepted, and the new one.
    """
    out = model.ahead(
        params,
        0,
        jnp.stack([draft.hidden, hidden], 1),
        jnp.stack([draft.token, tokens], 1),
        positions=position[:, None] + jnp.arange(-2, 0),
        segments=jnp.stack([draft.pending & live, live], 1).astype(jnp.int32),
        cache=replace(draft.cache, index=column),
    )
    assert out.cache is not None
    guess = jnp.argmax(model.logits(params, out.hidden[:, 1]), -1).astype(jnp.int32)
    return guess, replace(draft, cache=out.cache)


def _prompt_of(plan: Plan, sample: jax.Array) -> jax.Array:
    return jnp.minimum(sample, plan.samples - 1) // plan.group


def _flush(plan: Plan, state: Slots) -> Slots:
    """Copies what every seated slot has emitted to its sample's output row."""
    inside = jnp.arange(plan.max_new_tokens) < state.count[:, None]
    save = lambda out, rows: out.at[state.sample].set(rows, mode="drop")  # noqa: E731
    return replace(
        state,
        out_tokens=save(state.out_tokens, jnp.where(inside, state.tokens, 0)),
        out_logps=save(state.out_logps, jnp.where(inside, state.logps, 0)),
        out_count=save(state.out_count, jnp.where(state.done, state.count, 0)),
        out_stopped=save(state.out_stopped, state.stopped),
    )


def _seat(plan: Plan, ready: Prompts, state: Slots) -> Slots:
    """Flushes the finished slots and gives them the next samples of the queue, prompt keys included."""
    state = _flush(plan, state)
    turn = state.queue + jnp.cumsum(state.done) - 1
    new = state.done & (turn < plan.samples)
    # A flushed slot that gets no new sample forgets its old one, which is saved already.
    sample = jnp.where(new, turn, jnp.where(state.done, plan.samples, state.sample)).astype(jnp.int32)
    prompt = _prompt_of(plan, sample)

    def take(fresh: jax.Array, old: jax.Array) -> jax.Array:
        """The prompt's state in the seats that are new; what it does not reach (the ring's columns) stays."""
        prefix = jax.lax.slice(old, [0] * old.ndim, [old.shape[0], *fresh.shape[1:]])
        merged = jnp.where(new.reshape(-1, *[1] * (old.ndim - 1)), fresh[prompt], prefix)
        return jax.lax.dynamic_update_slice(old, merged, [0] * old.ndim)

    def seated(fresh: Cache, old: Cache) -> Cache:
        cache = jax.tree.map(lambda f, o: take(f, o) if o.ndim else o, fresh, old)
        ring = jnp.arange(cache.segments.shape[1]) >= plan.prompt_length
        return replace(cache, segments=jnp.where(new[:, None] & ring, 0, cache.segments))

    draft = state.draft
    if draft is not None and ready.draft is not None:
        draft = replace(draft, cache=seated(ready.draft, draft.cache), pending=draft.pending & ~new)
    return replace(
        state,
        cache=seated(ready.cache, state.cache),
        hidden=take(ready.hidden, state.hidden),
        draft=draft,
        sample=sample,
        count=jnp.where(new, 0, state.count),
        done=state.done & ~new,
        stopped=state.stopped & ~new,
        queue=jnp.minimum(state.queue + new.sum(), plan.samples).astype(jnp.int32),
    )
