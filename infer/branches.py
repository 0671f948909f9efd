"""Samples that are taken up again, each from where any of them stands, with the keys that are there: a search's nodes.

A continuation reads its prefixes anew; here a sample goes on from the slot of another, whose keys are copied. Where a
stop string has cut a sample, its slot is some tokens ahead of it, and it cannot be gone on from.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers.decoding import Decoder, tail_of
from infer.continuation import Continuation, Prefixes, is_decoded
from infer.decode import PER_SLOT
from infer.plan import Plan, PromptShape, plan_sampler
from infer.polling import HostPolling
from infer.prefill import Prompts
from infer.recurrence import Recurrence
from infer.rows import continued_waves, prefix_columns, read_lengths
from infer.sampler import Rollout, decoded, pad_prompts, read_wave
from infer.sampling import SamplingParams
from infer.slots import Slots, empty_slots
from infer.thoughts import Thoughts
from model.lm import Model, Params

OUTPUTS = ("out_tokens", "out_logps", "out_depths", "out_routes", "out_thinking")


@dataclass(frozen=True)
class Branches:
    """N samples of P prompts, sample n in slot n: what they were asked and sampled with, and where they stand.

    `counts` [N] tokens of each. What `state` held is used up when the samples go on.
    """

    model: Model
    params: Params
    plan: Plan
    sampling: SamplingParams
    tokenizer: Decoder
    prompts: list[np.ndarray]
    group_of: np.ndarray
    ready: Prompts
    state: Slots
    counts: np.ndarray

    @property
    def room(self) -> int:
        """Steps that they may go on by before the ring of columns is full."""
        return self.plan.ring - int(self.state.step)


def open_branches(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    continuation: Continuation,
    *,
    tokenizer: Decoder,
    recurrence: Recurrence | None = None,
    thoughts: Thoughts | None = None,
) -> Branches:
    """The samples of a continuation, read and not gone on yet; there is room for half as many steps again as tokens."""
    rows, most = [np.asarray(prompt, np.int32) for prompt in prompts], sampling.max_new_tokens
    assert continuation.group_of is not None
    read = read_lengths(continuation, most, decoded=is_decoded(model.config, recurrence, thoughts), routes=False)
    tokens, _ = pad_prompts(rows)
    samples = continuation.samples
    more = prefix_columns(int(read.max()), most)
    shape = PromptShape(len(rows), tokens.shape[1], samples, more)
    planned = plan_sampler(model, shape, sampling, recurrence=recurrence, thoughts=thoughts)
    # All samples sit from the first step on, each in the slot of its number.
    plan = replace(planned.plan, lanes=1, slots=samples, samples=samples, shrink=0, columns=most + most // 2)
    planned = replace(planned, plan=plan, waves=replace(planned.waves, count=1, prompts=samples, lanes=1))
    wave = next(continued_waves(rows, continuation.group_of, continuation, read, planned, None))
    plan = replace(plan, prompt_length=wave.tokens.shape[1])
    ready, state = read_wave(model, plan, params, wave), empty_slots(model, plan)
    return Branches(
        model, params, plan, sampling, tokenizer, rows, continuation.group_of, ready, state, continuation.lengths
    )


def advance(branches: Branches, key: jax.Array, until: np.ndarray, numbers: np.ndarray) -> tuple[Branches, Rollout]:
    """All samples that have not ended go on to their ends, or to `until` [N] tokens.

    Sample n draws its token t with fold_in(fold_in(key, numbers[n]), t), as `generate` does.
    """
    plan, sampling, prefixes = branches.plan, branches.sampling, branches.ready.prefixes
    assert prefixes is not None
    bound = jnp.asarray(np.minimum(until, plan.max_new_tokens).astype(np.int32))
    ready = replace(branches.ready, prefixes=replace(prefixes, until=bound))
    tails = [tail_of(prompt.tolist(), branches.tokenizer) for prompt in branches.prompts]
    polling = HostPolling(
        sampling.stop_strings,
        branches.tokenizer,
        [tails[group] for group in branches.group_of],
        branches.counts,
        np.zeros(plan.samples, bool),
        branches.group_of,
        None,
        0,
        sampling.execution.chunk,
    )
    noise = (key, jnp.asarray(numbers, jnp.int32), jnp.float32(sampling.temperature))
    state = decoded(branches.model, plan, branches.params, ready, branches.state, noise, polling)
    tokens, logps, counts, stopped = (np.asarray(x) for x in (state.tokens, state.logps, state.count, state.stopped))
    prompts, mask = pad_prompts(branches.prompts)
    inside = np.arange(tokens.shape[1]) < counts[:, None]
    rollout = Rollout(
        np.where(inside, tokens, 0),
        np.where(inside, logps, 0),
        inside.astype(np.float32),
        counts,
        stopped,
        prompts,
        mask,
        branches.group_of,
    )
    return replace(branches, ready=ready, state=state, counts=counts), rollout


def branch(branches: Branches, parents: np.ndarray) -> Branches:
    """Sample n of as many as `parents` [M] stands where sample `parents[n]` stands; one below 0 has ended."""
    parents = np.asarray(parents, np.int32)
    rows, active = np.maximum(parents, 0), jnp.asarray(parents >= 0)
    plan = replace(branches.plan, slots=len(parents), samples=len(parents))
    # Only arrays of the same sizes can be written in place.
    move = _moved_in_place if plan == branches.plan else _moved
    state, prefixes = move(plan, branches.state, branches.ready.prefixes, jnp.asarray(rows), active)
    ready = replace(branches.ready, prefixes=prefixes)
    return replace(
        branches,
        plan=plan,
        ready=ready,
        state=state,
        counts=branches.counts[rows],
        group_of=branches.group_of[rows],
    )


def _move(plan: Plan, state: Slots, prefixes: Prefixes, rows: jax.Array, active: jax.Array) -> tuple[Slots, Prefixes]:
    """The slots, and what their samples start from: none of it is fed any more, for it is in the slots."""
    kept = {name: jax.tree.map(lambda x: x[rows] if x.ndim else x, getattr(state, name)) for name in PER_SLOT}
    blank = lambda x: jnp.zeros((plan.samples, *x.shape[1:]), x.dtype)  # noqa: E731
    outputs = {name: jax.tree.map(blank, getattr(state, name)) for name in OUTPUTS}
    samples = jnp.arange(plan.samples, dtype=jnp.int32)
    none = jnp.zeros_like(samples)
    state = replace(state, **kept, **outputs)
    state = replace(
        state,
        sample=jnp.where(active, samples, plan.samples),
        done=~active,
        stopped=jnp.zeros_like(active),
        out_count=none,
        out_stopped=jnp.zeros_like(active),
    )
    moved = replace(jax.tree.map(lambda x: x[rows], prefixes), length=none)
    return state, replace(moved, done=~active, finished=~active)


_moved = functools.partial(jax.jit, static_argnums=0)(_move)
_moved_in_place = functools.partial(jax.jit, static_argnums=0, donate_argnums=1)(_move)
