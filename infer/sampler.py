"""The one sampler: prefill each prompt once, seat its samples in slots, decode, reseat finished slots from the queue.

This half runs on the host; infer/prefill.py and infer/decode.py are what is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers.decoding import Decoder, tail_of
from infer.budget import check_budget, forcing_of, of_samples, start_tokens
from infer.checks import check_room, check_stops, known_prompts, prompt_rows
from infer.continuation import Continuation, check_continuation, forced_of, groups_of, interrupted, is_decoded
from infer.decode import Draws, decode, finished, shrunk
from infer.draft import Draft
from infer.feedback import thought_seeds
from infer.gate_depths import with_gate_depths
from infer.plan import Plan, PromptShape, plan_sampler
from infer.polling import HostPolling, stop_at_strings
from infer.prefill import Prompts, prefill
from infer.recurrence import Recurrence, depths_by_sample
from infer.rows import Wave, continued_waves, prefix_columns, prompt_waves, read_lengths
from infer.sampling import SamplingParams
from infer.slots import Slots, empty_slots
from infer.thoughts import Thoughts, check_quiet, check_thoughts
from model.lm import Model, Params

BY_PROMPT = ("prompt_routes", "prompt_cosine")  # what a wave has of its rows, not of its samples


@flax.struct.dataclass
class Rollout:
    """N samples of at most T tokens, of the prompts that `group_of` [N] names: row p * G + g of P x G, or as a
    continuation has them.

    `tokens` [N, T] with 0 after the end; `logps` [N, T] of the distribution really sampled from, 0 on forced tokens;
    `mask` [N, T] 1 on the policy's own tokens, the end token included, 0 on forced ones; `lengths` [N] of all emitted
    tokens, forced ones and prefixes included; `finished` [N] False where cut at T; `prompts`, `prompt_mask` [P, Lp]
    left-padded; `depth` [N, T] iterations spent on each token of a recurrent model, else None; `routes`
    [N, T, layers, k] and `prompt_routes` [P, Lp, layers, k] the experts taken where they were asked for, else None;
    `partial` [N] where the sampler was told to stop early: the samples that have not ended; `steps` decode steps run;
    `acceptance` the share of drafted tokens that were kept, None without a draft; `thoughts` each prompt ended in, and
    `after` further tokens, `thought_cosine` between its thoughts on average; where thoughts differ, `thought_seeds`
    [N], and of soft ones `soft_ids`, `soft_scores`, `soft_logps` [N, thoughts, K] (infer/feedback.py). With a budget,
    `thought` [N] own tokens of each thought, its delimiters left out, `waits` [N] forced into it, and where the answer
    begins, `answer` [N] (-1: not within T).
    """

    tokens: np.ndarray
    logps: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    prompts: np.ndarray
    prompt_mask: np.ndarray
    group_of: np.ndarray
    depth: np.ndarray | None = None
    routes: np.ndarray | None = None
    prompt_routes: np.ndarray | None = None
    partial: np.ndarray | None = None
    steps: int = 0
    acceptance: float | None = None
    thoughts: int = 0
    after: int = 1
    thought_cosine: float | None = None
    thought_seeds: np.ndarray | None = None
    soft_ids: np.ndarray | None = None
    soft_scores: np.ndarray | None = None
    soft_logps: np.ndarray | None = None
    thought: np.ndarray | None = None
    waits: np.ndarray | None = None
    answer: np.ndarray | None = None


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    key: jax.Array,
    sampling: SamplingParams,
    *,
    tokenizer: Decoder | None = None,
    recurrence: Recurrence | None = None,
    draft: Draft | None = None,
    thoughts: Thoughts | None = None,
    continuation: Continuation | None = None,
) -> Rollout:
    """Samples `sampling.n` continuations of each prompt (token id lists, no padding).

    `tokenizer` is needed for stop strings; `recurrence`: how a recurrent model iterates; `draft`: speculative decoding,
    which leaves the samples as they are; `thoughts` that every prompt ends in. With a `continuation` samples start from
    prefixes of their own, and tokens may be forced; the prefill reads each distinct prefix once. `sampling.budget`
    closes every prompt with the delimiter that opens a thought.

    Sample n draws token t with fold_in(fold_in(key, n), t): its noise does not depend on slots, batch, devices or where
    it was interrupted. Raises ValueError for what is no prompt, unknown ids, too little room, and parts that clash.
    """
    check_stops(model.config, sampling, tokenizer)
    start = start_tokens(sampling.budget, tokenizer)
    rows = [np.append(row, start).astype(row.dtype) for row in known_prompts(model.config, prompts)]
    tokens, mask = pad_prompts(rows)
    check_room(model, int(mask.sum(1).max()), sampling.max_new_tokens)
    check_thoughts(tokens, mask, thoughts)
    shape, read = PromptShape(*tokens.shape), None
    group_of = np.repeat(np.arange(len(rows), dtype=np.int32), sampling.n)
    if continuation is not None:
        check_continuation(continuation, sampling.max_new_tokens, model.config)
        check_quiet(thoughts)
        group_of = groups_of(continuation, len(rows), sampling.n)
        decoded = is_decoded(model.config, recurrence, thoughts)
        read = read_lengths(continuation, sampling.max_new_tokens, decoded=decoded, routes=sampling.execution.routes)
        more = prefix_columns(int(read.max()), sampling.max_new_tokens)
        shape = replace(shape, samples=continuation.samples, prefix=more)
    numbers = sample_numbers(continuation, len(group_of))
    recurrence = with_gate_depths(model, params, (tokens, mask), (group_of, numbers), key, recurrence, thoughts)
    planned = plan_sampler(model, shape, sampling, recurrence=recurrence, draft=draft, thoughts=thoughts)
    depths = depths_by_sample(model, planned.plan.recurrence, recurrence)
    seeds = None if planned.plan.thoughts.noise.quiet else thought_seeds(key, numbers)
    if continuation is None or read is None:
        waves = prompt_waves(tokens, mask, planned, depths, seeds)
    else:
        waves = continued_waves(rows, group_of, continuation, read, planned, depths)
    if sampling.budget is not None:
        check_budget(sampling.budget, sampling.execution.min_complete_groups, continuation, recurrence)
        forcing = forcing_of(sampling, tokenizer, len(group_of), model.config, drafts=draft is not None)
        waves = (replace(wave, forcing=of_samples(forcing, wave.samples)) for wave in waves)
    polls = functools.partial(_polling, sampling, tokenizer, rows, group_of)
    found = [
        _sampled(model, params, planned.plan, wave, (key, numbers, sampling.temperature), polls(wave, n))
        for n, wave in enumerate(waves)
    ]
    rollout = _rollout(found, tokens, mask, group_of, continuation)
    rollout = replace(rollout, acceptance=rollout.acceptance if draft else None, thought_seeds=seeds)
    return replace(rollout, thoughts=thoughts.count, after=thoughts.after) if thoughts else rollout


def sample_numbers(continuation: Continuation | None, samples: int) -> np.ndarray:
    """The numbers [N] by which samples draw: those of a continuation that has any, else 0 .. N - 1."""
    return np.arange(samples) if continuation is None or continuation.number is None else continuation.number


def _polling(
    sampling: SamplingParams,
    tokenizer: Decoder | None,
    prompts: Sequence[np.ndarray],
    group_of: np.ndarray,
    wave: Wave,
    number: int,
) -> HostPolling:
    """How the wave of that number is polled."""
    execution, strings, of_wave = sampling.execution, sampling.stop_strings, group_of[wave.samples]
    before, samples = number * len(wave.samples), len(group_of)
    ends = [tail_of(prompt.tolist(), tokenizer) for prompt in prompts] if strings and tokenizer else []
    none = np.zeros(len(of_wave), int)
    return HostPolling(
        strings,
        tokenizer,
        [ends[group] for group in of_wave] if ends else [],
        none if wave.prefixes is None else wave.prefixes.length,
        none.astype(bool) if wave.prefixes is None else wave.prefixes.done,
        of_wave,
        functools.partial(_tell, execution.progress, before, samples) if execution.progress else None,
        execution.min_complete_groups,
        execution.chunk,
    )


def _tell(progress: Callable[[int, int], None], before: int, samples: int, ended: int) -> None:
    progress(min(before + ended, samples), samples)


def _sampled(
    model: Model,
    params: Params,
    plan: Plan,
    wave: Wave,
    draws: tuple[jax.Array, np.ndarray, float],
    polling: HostPolling,
) -> dict[str, np.ndarray]:
    """A wave's arrays, samples or rows first, decoded to their ends or until enough groups are complete.

    `draws`: the key, the number of every sample of the rollout, and the temperature.
    """
    key, numbers, temperature = draws
    plan = replace(plan, prompt_length=wave.tokens.shape[1])
    ready = read_wave(model, plan, params, wave)
    noise = (key, jnp.asarray(numbers[wave.samples].astype(np.int32)), jnp.float32(temperature))
    state = decoded(model, plan, params, ready, empty_slots(model, plan), noise, polling)
    found = _results(state, ready)
    found |= interrupted(state, wave.prefixes) if polling.min_complete else {}
    return found | {"samples": wave.samples, "prompt_of": wave.prompt_of}


def read_wave(model: Model, plan: Plan, params: Params, wave: Wave) -> Prompts:
    """The prefill of a wave, and what its samples start from and are held to."""
    # Cast on the host, so that on a mesh all of them are laid out alike: everywhere.
    given = (jnp.asarray(x.astype(np.int32)) for x in (wave.tokens, wave.mask))
    varied = (None if x is None else jnp.asarray(x) for x in (wave.depths, wave.seeds))
    ready = prefill(model, plan, params, *given, *varied)
    more = {"prefixes": wave.prefixes, "forcing": wave.forcing}
    return replace(ready, **{name: jax.tree.map(jnp.asarray, value) for name, value in more.items()})


def decoded(
    model: Model, plan: Plan, params: Params, ready: Prompts, state: Slots, noise: Draws, polling: HostPolling
) -> Slots:
    """The slots when all samples have ended, or enough of them; `state` is used up."""
    while not finished(state, plan):
        state = decode(model, plan, params, ready, state, noise, jnp.int32(polling.limit))
        if polling.strings:
            state = stop_at_strings(state, plan, polling)
        plan, state = shrunk(plan, state)
        if polling.is_enough(state):
            break
    return state


def compilations() -> int:
    """How many sampler programs this process has compiled: prefills, empty slots and decoders."""
    programs: tuple[Any, ...] = (prefill, empty_slots, decode)
    return sum(program._cache_size() for program in programs)


def pad_prompts(prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left-pads prompts to one of few lengths (few compilations): tokens [P, Lp] int32, mask [P, Lp] bool."""
    rows = prompt_rows(prompts)
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


def _results(state: Slots, ready: Prompts) -> dict[str, np.ndarray]:
    """A wave's arrays, samples or rows first; only those that are kept."""
    thinking = state.out_thinking
    # Where thoughts differ, each sample has a row of the prefill.
    soft = {} if ready.choices is None else {f"soft_{name}": x for name, x in ready.choices._asdict().items()}
    found = {
        "tokens": state.out_tokens,
        "logps": state.out_logps,
        "lengths": state.out_count,
        "finished": state.out_stopped,
        "depth": state.out_depths,
        "routes": state.out_routes,
        "prompt_routes": ready.routes,
        "prompt_cosine": ready.cosine,
        **soft,
        "counts": jnp.stack([state.step, state.accepted, state.drafted])[None],
    }
    if thinking is not None:
        kept = {"own": thinking.own, "thought": thinking.thought, "waits": thinking.waited, "answer": thinking.answer}
        found |= kept
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def _rollout(
    found: list[dict[str, np.ndarray]],
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    group_of: np.ndarray,
    continuation: Continuation | None,
) -> Rollout:
    """The waves' arrays as one rollout, its samples and prompts in their own order and once each."""
    for wave in found:
        if "prompt_routes" in wave:
            wave["prompt_routes"] = _of_width(wave["prompt_routes"], prompts.shape[1])
    whole = {name: np.concatenate([wave[name] for wave in found]) for name in found[0]}
    steps, accepted, drafted = whole.pop("counts").sum(0)
    first = lambda numbers, count: np.unique(numbers, return_index=True)[1][:count]  # noqa: E731
    samples, rows = first(whole.pop("samples"), len(group_of)), first(whole.pop("prompt_of"), len(prompts))
    kept: dict[str, Any] = {name: x[rows if name in BY_PROMPT else samples] for name, x in whole.items()}
    inside = np.arange(kept["tokens"].shape[1]) < kept["lengths"][:, None]
    for name in ("tokens", "logps", "depth"):
        if name in kept:
            kept[name] = np.where(inside, kept[name], 0).astype(kept[name].dtype)
    own = inside & kept.pop("own", True)
    own = own if continuation is None else own & ~forced_of(continuation, inside.shape[1])
    cosine = kept.pop("prompt_cosine", None)
    return Rollout(
        **kept,
        thought_cosine=None if cosine is None else float(cosine.mean()),
        mask=own.astype(np.float32),
        prompts=prompts,
        prompt_mask=prompt_mask,
        group_of=group_of,
        steps=int(steps),
        acceptance=float(accepted / max(drafted, 1)),
    )


def _of_width(routes: np.ndarray, width: int) -> np.ndarray:
    """Routes of left-padded rows [R, L, layers, k] as those of rows of another width."""
    return np.pad(routes, ((0, 0), (max(width - routes.shape[1], 0), 0), (0, 0), (0, 0)))[:, -width:]
