"""The one sampler: prefill each prompt once, seat its samples in slots, decode, reseat finished slots from the queue.

A slot is one row of the decode cache. Its first columns hold the prompt's keys; the other `max_new_tokens` columns are
a ring that all slots write at the same place, so that a row seated late costs nothing: columns know their own positions
and segments (model/cache.py), and a seat starts by declaring its ring columns empty. Everything between two looks of
the host is one compiled loop: seat -> decode until enough slots are free -> seat ...
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from infer.sampling import Sampling, draw
from model.cache import Cache
from model.lm import Model, Params

Draws = tuple[jax.Array, jax.Array, jax.Array]  # key, number of the wave's first sample, temperature
UNLIMITED = 2**30
PREFILL_TOKENS = 8192


class Decoder(Protocol):
    """The part of a tokenizer that stop strings need."""

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text."""
        ...


@flax.struct.dataclass
class Rollout:
    """N = P x G samples (row p * G + g) of at most T tokens.

    `tokens` [N, T] with 0 after the end; `logps` [N, T] of the distribution really sampled from; `mask` [N, T] 1 on
    emitted tokens, the end token included; `lengths` [N]; `finished` [N] False where cut at T; `prompts`,
    `prompt_mask` [P, Lp] left-padded; `depth` per-token depth of recurrent models, else None; `steps` decode steps
    run.
    """

    tokens: np.ndarray
    logps: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    prompts: np.ndarray
    prompt_mask: np.ndarray
    depth: np.ndarray | None = None
    steps: int = 0


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


@flax.struct.dataclass
class Prompts:
    """What the prefill leaves for the seats: `cache` with P rows of Lp columns, `hidden` [P, D] of the last token."""

    cache: Cache
    hidden: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Slots:
    """Decode state of B slots and the output of all N samples.

    `sample` [B] the sample seated (N = none); `count` [B] tokens emitted; `start` [B] the step of its seat; `done` [B];
    `tokens`, `logps` [B, T] ring buffers; `out_*` [N, ...] finished samples; `queue` the next sample to seat.
    """

    cache: Cache
    hidden: jax.Array
    sample: jax.Array
    count: jax.Array
    start: jax.Array
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


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: Sequence[int | str] = (),
    samples_per_prompt: int = 1,
    depth: Any = None,
    slots: int | None = None,
    tokenizer: Decoder | None = None,
    chunk: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Rollout:
    """Samples `samples_per_prompt` continuations of each prompt (token id lists, no padding).

    `stop` holds token ids and strings (which need `tokenizer`); the token that completes one is the last kept. `slots`
    bounds the rows decoded at once; more samples wait in a queue. `progress(finished, total)` is called every `chunk`
    steps. Sample n draws with fold_in(fold_in(key, n), t): its noise does not depend on slots, batch or devices.
    Raises ValueError for an empty prompt and for prompts that leave no room for `max_new_tokens` in the model's
    context.
    """
    if depth is not None:
        raise ValueError(f"depth={depth} was given to a plain stack, which has no depth to choose")
    tokens, mask = pad_prompts(prompts)
    check_room(model, int(mask.sum(1).max()), max_new_tokens)
    _check_numbers(temperature, samples_per_prompt, slots)
    strings = _stop_strings(stop, tokenizer)
    stop_ids = tuple(int(s) for s in stop if not isinstance(s, str))
    sampling = Sampling(temperature == 0, top_k, top_p, min_p)
    samples = len(tokens) * samples_per_prompt
    waves, wave = _waves(len(tokens), samples_per_prompt, slots or samples)
    size = min(slots or samples, wave * samples_per_prompt)
    plan = Plan(
        size, wave * samples_per_prompt, samples_per_prompt, tokens.shape[1], max_new_tokens, stop_ids, sampling
    )
    found = []
    for first in range(0, waves * wave, wave):
        rows = np.minimum(np.arange(first, first + wave), len(tokens) - 1)  # the last wave repeats its last prompt
        ready = _prefill(model, plan, params, jnp.asarray(tokens[rows]), jnp.asarray(mask[rows], jnp.int32))
        state = _empty_slots(model, plan)
        offset = first * samples_per_prompt
        limit = chunk if strings or progress else UNLIMITED
        draws = (key, jnp.int32(offset), jnp.float32(temperature))
        while not _finished(state, plan):
            state = _decode(model, plan, params, ready, state, draws, jnp.int32(limit))
            if strings:
                state = _stop_at_strings(state, plan, strings, tokenizer)  # type: ignore[arg-type]
            if progress:
                progress(min(offset + int(state.out_count.astype(bool).sum()), samples), samples)
        found.append(_results(state))
    return _rollout(found, samples, tokens, mask)


def _waves(prompts: int, group: int, slots: int) -> tuple[int, int]:
    """(waves, prompts per wave): the keys of at most four times as many samples as slots wait at a time."""
    waves = -(-prompts // max(4 * slots // group, 1))
    return waves, -(-prompts // waves)


def compilations() -> int:
    """How many sampler programs this process has compiled: prefills, empty slots and decoders."""
    programs: tuple[Any, ...] = (_prefill, _empty_slots, _decode)
    return sum(program._cache_size() for program in programs)


def pad_prompts(prompts: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left-pads prompts to one of few lengths (few compilations): tokens [P, Lp] int32, mask [P, Lp] bool."""
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    if not rows or min(map(len, rows)) == 0:
        raise ValueError(
            f"every prompt needs at least one token; found lengths {sorted(map(len, rows))[:5]} of {len(rows)} prompts"
        )
    length = bucket(max(map(len, rows)))
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return tokens, mask


def bucket(length: int) -> int:
    """The padded length: a multiple of 8, then of a quarter of the power of two below (at most 25 % padding)."""
    step = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def check_room(model: Model, longest: int, max_new_tokens: int) -> None:
    """Raises ValueError unless the longest prompt and the new tokens fit into the model's context."""
    room = model.config.max_length
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if longest + max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {room};"
            " shorten the prompt, ask for fewer tokens or raise model.max_length"
        )


def _check_numbers(temperature: float, samples_per_prompt: int, slots: int | None) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number from 0 (greedy) up, found {temperature}")
    if samples_per_prompt < 1:
        raise ValueError(f"samples_per_prompt must be at least 1, found {samples_per_prompt}")
    if slots is not None and slots < 0:
        raise ValueError(f"slots must be at least 1, or 0 for one per sample; found {slots}")


def _stop_strings(stop: Sequence[int | str], tokenizer: Decoder | None) -> tuple[str, ...]:
    strings = tuple(s for s in stop if isinstance(s, str))
    if strings and tokenizer is None:
        raise ValueError(f"stop strings {strings} are matched on text: give generate(..., tokenizer=...)")
    if "" in strings:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    return strings


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(model: Model, plan: Plan, params: Params, tokens: jax.Array, mask: jax.Array) -> Prompts:
    """Runs the prompts through the model, a few at a time: attention scores grow with the square of their length."""

    def some(rows: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
        tokens, mask = rows
        positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
        cache = model.init_cache(len(tokens), plan.prompt_length)
        out = model.apply(params, tokens, positions=positions, segments=mask, cache=cache)
        assert out.cache is not None
        return replace(out.cache, index=jnp.zeros((len(tokens),), jnp.int32)), out.hidden[:, -1]

    size = max(PREFILL_TOKENS // plan.prompt_length, 1)
    blocks, block = -(-len(tokens) // size), -(-len(tokens) // -(-len(tokens) // size))
    if blocks == 1:
        cache, hidden = some((tokens, mask))
    else:
        rows = jnp.minimum(jnp.arange(blocks * block), len(tokens) - 1).reshape(blocks, block)
        cache, hidden = jax.tree.map(
            lambda x: x.reshape(blocks * block, *x.shape[2:])[: len(tokens)],
            jax.lax.map(lambda r: some((tokens[r], mask[r])), rows),
        )
    return Prompts(replace(cache, index=jnp.zeros((), jnp.int32)), hidden, mask.sum(1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty_slots(model: Model, plan: Plan) -> Slots:
    B, N, T = plan.slots, plan.samples, plan.max_new_tokens
    ints, floats = (
        functools.partial(jnp.zeros, dtype=jnp.int32),
        functools.partial(jnp.zeros, dtype=jnp.float32),
    )
    return Slots(
        cache=model.init_cache(B, plan.prompt_length + T),
        hidden=jnp.zeros((B, model.config.d_model), model.config.dtype),
        sample=jnp.full((B,), N, jnp.int32),
        count=ints((B,)),
        start=ints((B,)),
        done=jnp.ones((B,), bool),
        stopped=jnp.zeros((B,), bool),
        tokens=ints((B, T)),
        logps=floats((B, T)),
        out_tokens=ints((N, T)),
        out_logps=floats((N, T)),
        out_count=ints((N,)),
        out_stopped=jnp.zeros((N,), bool),
        queue=ints(()),
        step=ints(()),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(4,))
def _decode(
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


def _step(
    model: Model,
    plan: Plan,
    params: Params,
    ready: Prompts,
    state: Slots,
    draws: Draws,
) -> Slots:
    """Every slot draws a token from its last hidden state and feeds it back; finished slots idle."""
    key, offset, temperature = draws
    numbers = state.sample + offset
    keys = jax.vmap(lambda n, t: jax.random.fold_in(jax.random.fold_in(key, n), t))(numbers, state.count)
    tokens, logps = draw(model.logits(params, state.hidden), keys, temperature, plan.sampling)
    ring = state.step % plan.max_new_tokens
    live = ~state.done

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        # A finished slot may idle longer than its ring has room: what it emitted must outlive that.
        old = jax.lax.dynamic_slice_in_dim(buffer, ring, 1, 1)
        return jax.lax.dynamic_update_slice(buffer, jnp.where(live[:, None], new[:, None], old), (0, ring))

    position = ready.lengths[_prompt_of(plan, state.sample)] + state.count
    count = state.count + live
    stopped = live & jnp.isin(tokens, jnp.asarray(plan.stop_ids, jnp.int32))
    out = model.apply(
        params,
        tokens[:, None],
        positions=position[:, None],
        segments=live[:, None].astype(jnp.int32),
        cache=replace(state.cache, index=plan.prompt_length + ring),
    )
    assert out.cache is not None
    return replace(
        state,
        cache=out.cache,
        hidden=out.hidden[:, 0],
        count=count,
        stopped=state.stopped | stopped,
        done=state.done | stopped | (count >= plan.max_new_tokens),
        tokens=put(state.tokens, tokens),
        logps=put(state.logps, logps),
        step=state.step + 1,
    )


def _prompt_of(plan: Plan, sample: jax.Array) -> jax.Array:
    return jnp.minimum(sample, plan.samples - 1) // plan.group


def _flush(plan: Plan, state: Slots) -> Slots:
    """Copies every seated slot's ring to its sample's output row."""
    order = (state.start[:, None] + jnp.arange(plan.max_new_tokens)) % plan.max_new_tokens
    inside = jnp.arange(plan.max_new_tokens) < state.count[:, None]
    save = lambda out, rows: out.at[state.sample].set(rows, mode="drop")  # noqa: E731
    return replace(
        state,
        out_tokens=save(state.out_tokens, jnp.where(inside, jnp.take_along_axis(state.tokens, order, 1), 0)),
        out_logps=save(state.out_logps, jnp.where(inside, jnp.take_along_axis(state.logps, order, 1), 0)),
        out_count=save(state.out_count, jnp.where(state.done, state.count, 0)),
        out_stopped=save(state.out_stopped, state.stopped),
    )


def _seat(plan: Plan, ready: Prompts, state: Slots) -> Slots:
    """Flushes the finished slots and gives them the next samples of the queue, prompt keys included."""
    state = _flush(plan, state)
    turn = state.queue + jnp.cumsum(state.done) - 1
    new = state.done & (turn < plan.samples)
    # A flushed slot that gets no new sample forgets its old one: its ring is overwritten while it idles.
    sample = jnp.where(new, turn, jnp.where(state.done, plan.samples, state.sample)).astype(jnp.int32)
    prompt = _prompt_of(plan, sample)

    def take(fresh: jax.Array, old: jax.Array) -> jax.Array:
        """The prompt's state in the seats that are new; what it does not reach (the ring's columns) stays."""
        prefix = jax.lax.slice(old, [0] * old.ndim, [old.shape[0], *fresh.shape[1:]])
        merged = jnp.where(new.reshape(-1, *[1] * (old.ndim - 1)), fresh[prompt], prefix)
        return jax.lax.dynamic_update_slice(old, merged, [0] * old.ndim)

    seated = jax.tree.map(lambda f, o: take(f, o) if o.ndim else o, ready.cache, state.cache)
    ring = jnp.arange(seated.segments.shape[1]) >= plan.prompt_length
    seated = replace(seated, segments=jnp.where(new[:, None] & ring, 0, seated.segments))
    return replace(
        state,
        cache=seated,
        hidden=take(ready.hidden, state.hidden),
        sample=sample,
        count=jnp.where(new, 0, state.count),
        start=jnp.where(new, state.step, state.start),
        done=state.done & ~new,
        stopped=state.stopped & ~new,
        queue=jnp.minimum(state.queue + new.sum(), plan.samples).astype(jnp.int32),
    )


def _finished(state: Slots, plan: Plan) -> bool:
    return bool((state.queue >= plan.samples) & state.done.all())


def _stop_at_strings(state: Slots, plan: Plan, strings: tuple[str, ...], tokenizer: Decoder) -> Slots:
    """Ends the samples whose text holds a stop string at the token that completed it."""
    sample, count, done = (np.array(x) for x in (state.sample, state.count, state.done))
    out_count, stopped, out_stopped = (np.array(x) for x in (state.out_count, state.stopped, state.out_stopped))
    tokens = np.asarray(state.out_tokens)
    for b in np.flatnonzero(sample < plan.samples):
        cut = cut_at_strings(tokens[sample[b], : count[b]], strings, tokenizer)
        if cut < count[b]:
            count[b], done[b], stopped[b] = cut, True, True
            out_count[sample[b]], out_stopped[sample[b]] = cut, True
    for n in np.flatnonzero(out_count):
        cut = cut_at_strings(tokens[n, : out_count[n]], strings, tokenizer)
        if cut < out_count[n]:
            out_count[n], out_stopped[n] = cut, True
    return replace(
        state,
        count=jnp.asarray(count),
        done=jnp.asarray(done),
        stopped=jnp.asarray(stopped),
        out_count=jnp.asarray(out_count),
        out_stopped=jnp.asarray(out_stopped),
    )


def text_of(ids: Sequence[int], tokenizer: Decoder) -> str:
    """The text of token ids; one beyond the tokenizer (a padded vocabulary) reads as U+FFFD and is never an answer."""
    size = getattr(tokenizer, "vocab_size", UNLIMITED)
    if max(ids, default=0) < size:
        return tokenizer.decode(ids)
    runs = [(known, list(run)) for known, run in itertools.groupby(ids, lambda n: n < size)]
    return "".join(tokenizer.decode(run) if known else "\N{REPLACEMENT CHARACTER}" * len(run) for known, run in runs)


def cut_at_strings(ids: np.ndarray, strings: tuple[str, ...], tokenizer: Decoder) -> int:
    """The least number of leading tokens of `ids` whose text holds one of `strings`; len(ids) when none does."""

    def hit(count: int) -> bool:
        text = text_of(ids[:count].tolist(), tokenizer)
        return any(s in text for s in strings)

    if not hit(len(ids)):
        return len(ids)
    return next(count for count in range(1, len(ids) + 1) if hit(count))


def _results(state: Slots) -> tuple[np.ndarray, ...]:
    return tuple(
        np.asarray(x) for x in (state.out_tokens, state.out_logps, state.out_count, state.out_stopped, state.step[None])
    )


def _rollout(
    found: list[tuple[np.ndarray, ...]], samples: int, prompts: np.ndarray, prompt_mask: np.ndarray
) -> Rollout:
    tokens, logps, lengths, stopped, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    mask = np.arange(tokens.shape[1]) < lengths[:samples, None]
    return Rollout(
        tokens=np.where(mask, tokens[:samples], 0),
        logps=np.where(mask, logps[:samples], 0.0).astype(np.float32),
        mask=mask.astype(np.float32),
        lengths=lengths[:samples],
        finished=stopped[:samples],
        prompts=prompts,
        prompt_mask=prompt_mask,
        steps=int(steps.sum()),
    )
