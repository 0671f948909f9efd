"""The one sampler: prefill each prompt once, seat its samples in slots, decode, reseat finished slots from the queue.

This half runs on the host; infer/prefill.py and infer/decode.py are what is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers.decoding import UNLIMITED, Decoder, tail_of, text_of
from infer.checks import (
    check_numbers,
    check_pieces,
    check_room,
    check_routes,
    check_thoughts,
    drafting_of,
    known_prompts,
    prompt_rows,
    resolve_recurrence,
    what_stops,
)
from infer.decode import Draws, Slots, decode, empty_slots, finished, shrinks, shrunk
from infer.partial import PartialSamples, check_partial, interrupted, on_device, with_beginnings
from infer.prefill import Plan, Prompts, prefill
from infer.sampling import Sampling
from infer.waves import copies, in_waves
from model.exit import Exit
from model.lm import Model, Params

BY_PROMPT = ("prompt_routes",)  # what a wave has of its prompts, not of its samples


@flax.struct.dataclass
class Rollout:
    """N = P x G samples (row p * G + g) of at most T tokens.

    `tokens` [N, T] with 0 after the end; `logps` [N, T] of the distribution really sampled from; `mask` [N, T] 1 on
    emitted tokens, the end token included; `lengths` [N]; `finished` [N] False where cut at T; `prompts`,
    `prompt_mask` [P, Lp] left-padded; `depth` [N, T] iterations spent on each token of a recurrent model, else None;
    `routes` [N, T, layers, k] and `prompt_routes` [P, Lp, layers, k] the experts taken where they were asked for, else
    None; `partial` [N] where the sampler was told to stop early: the samples that have not ended; `steps` decode steps
    run; `acceptance` the share of drafted tokens that were kept, None without a draft; `thoughts` each prompt ended in.
    """

    tokens: np.ndarray
    logps: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    prompts: np.ndarray
    prompt_mask: np.ndarray
    depth: np.ndarray | None = None
    routes: np.ndarray | None = None
    prompt_routes: np.ndarray | None = None
    partial: np.ndarray | None = None
    steps: int = 0
    acceptance: float | None = None
    thoughts: int = 0


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
    thoughts: int = 0,
    after: int = 1,
    depth: Any = None,
    max_depth: int = 0,
    exit: Exit | str | None = None,
    warm_start: str = "",
    slots: int | None = None,
    tokenizer: Decoder | None = None,
    draft: bool = False,
    draft_depth: int = 0,
    draft_length: int = 3,
    routes: bool = False,
    shrink: int = 4,
    begun: PartialSamples | None = None,
    enough: int = 0,
    chunk: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Rollout:
    """Samples `samples_per_prompt` continuations of each prompt (token id lists, no padding).

    `stop` holds token ids and strings (which need `tokenizer`); the token that completes one is the last kept. `slots`
    bounds the rows decoded at once; more samples wait in a queue. Where few are left and may take long, they go on in
    `shrink` times fewer slots (0: they do not), a program of its own. `progress(finished, total)` is called every
    `chunk` steps. `draft` decodes speculatively: the first module of multi-token prediction guesses one token ahead,
    and the samples stay the same; so does `draft_depth`, which guesses `draft_length` tokens with so few iterations of
    a recurrent core.

    With `thoughts`, every prompt ends in so many latent tokens and `after` further ones (a marker, or none), and the
    model reads its own states in the latents' place (model/latent.py).

    For recurrent models: `depth` iterations a token, an int or one for every sample [N] (None: `recurrent.mean`),
    of which none passes `max_depth` (0: the largest; the program depends on it);
    `exit` ends those of a token early (model/exit.py); `warm_start` begins a token where the one before ended
    (continuous chain of thought, 2502.05171 section 6.3), "raw" or "normed".

    With `routes` the rollout tells which experts every token was sent to, for `model.apply` to take them again.

    `begun` is what the samples have said before; they go on from there. With `enough`, sampling stops soon after so
    many prompts have all their samples; the others come as far as they are (`Rollout.partial`), to be begun again.

    Sample n draws with fold_in(fold_in(key, n), t): its noise does not depend on slots, batch or devices. Raises
    ValueError for what is no prompt, for ids that the model does not know and for prompts that leave no room for
    `max_new_tokens` in the model's context.
    """
    stop_ids, strings = what_stops(model.config, stop, tokenizer)
    tokens, mask = pad_prompts(known_prompts(model.config, prompts))
    check_room(model, int(mask.sum(1).max()), max_new_tokens)
    check_numbers(temperature, samples_per_prompt, slots)
    check_thoughts(tokens, mask, thoughts, after)
    drafting = drafting_of(model, draft, draft_depth, draft_length)
    if routes:
        check_routes(model, drafting, thoughts)
    samples = len(tokens) * samples_per_prompt
    recurrence, budget = resolve_recurrence(model, samples, depth, max_depth, exit, warm_start, drafting)
    pieces = begun is not None or bool(enough)
    # Prompts seen at different depths leave different keys: each sample has its own.
    times = samples_per_prompt if budget is not None else 1 if pieces else copies(len(tokens), samples_per_prompt)
    tokens, mask = (np.repeat(x, times, 0) for x in (tokens, mask))
    group = samples // len(tokens)
    prefilled, seen, row_of = tokens, mask, np.zeros(0, np.int32)
    waves = in_waves(len(tokens), group, slots, one_lane=pieces)
    if pieces:
        check_pieces(drafting, thoughts, routes, budget, waves.count)
    if begun is not None:
        check_partial(begun, samples, max_new_tokens, model.config)
        prefilled, seen, row_of = with_beginnings(tokens, mask, begun, group)
    plan = Plan(
        waves.slots,
        waves.prompts * group,
        group,
        prefilled.shape[1],
        max_new_tokens,
        stop_ids,
        Sampling(temperature == 0, top_k, top_p, min_p),
        drafting,
        recurrence,
        thoughts,
        after,
        routes,
        shrinks(waves.slots, waves.lanes, shrink),
        waves.lanes,
    )
    # Waves of prompts of like length are padded less.
    order = np.argsort(mask.sum(1), kind="stable") if waves.count > 1 else np.arange(len(tokens))
    found = []
    for first in range(0, waves.count * waves.prompts, waves.prompts):
        # The last wave repeats its last prompt.
        rows = order[np.minimum(np.arange(first, first + waves.prompts), len(tokens) - 1)]
        rows = np.append(rows, np.arange(len(tokens), len(prefilled)))  # and those that samples go on from
        now = replace(plan, prompt_length=_width(seen[rows])) if waves.count > 1 else plan
        given = (jnp.asarray(x[rows][:, -now.prompt_length :], jnp.int32) for x in (prefilled, seen))
        ready = prefill(model, now, params, *given, None if budget is None else jnp.asarray(budget[rows]))
        ready = ready if begun is None else replace(ready, begun=on_device(begun, row_of))
        numbers = jnp.asarray((rows[: plan.samples // group, None] * group + np.arange(group)).reshape(-1), jnp.int32)
        done = functools.partial(_tell, progress, first * group, samples) if progress else None
        asked = [tokens[row][mask[row]].tolist() for row in rows[: waves.prompts]]
        polling = polling_of(strings, tokenizer, asked, done, enough, chunk)
        state = _decoded(model, now, params, ready, (key, numbers, jnp.float32(temperature)), polling)
        found.append(_results(state, ready.routes) | (_pieces(state, begun) if enough else {}))
    rollout = _rollout(found, order, group, tokens, mask, times)
    return replace(rollout, thoughts=thoughts, acceptance=rollout.acceptance if drafting else None)


@dataclass(frozen=True)
class HostPolling:
    """What the host polling at after every `chunk` steps: stop strings in what is added to `prompts` (their ends, where
    there are strings), how many samples are done, and whether those of `enough` prompts are.
    """

    strings: tuple[str, ...]
    tokenizer: Decoder | None
    prompts: Sequence[Sequence[int]]
    tell: Callable[[int], None] | None
    enough: int
    chunk: int

    @property
    def limit(self) -> int:
        """Steps between two polling."""
        return self.chunk if self.strings or self.tell or self.enough else UNLIMITED

    def cut(self, ids: np.ndarray, prompt: int) -> int:
        """How many of a sample's ids after a prompt are kept."""
        assert self.tokenizer is not None
        return cut_at_strings(ids, self.strings, self.tokenizer, self.prompts[prompt])


def polling_of(
    strings: tuple[str, ...],
    tokenizer: Decoder | None,
    prompts: Sequence[Sequence[int]],
    tell: Callable[[int], None] | None,
    enough: int,
    chunk: int,
) -> HostPolling:
    """What to look at in a wave of `prompts`."""
    ends = [tail_of(prompt, tokenizer) for prompt in prompts] if strings and tokenizer else []
    return HostPolling(strings, tokenizer, ends, tell, enough, chunk)


def _decoded(model: Model, plan: Plan, params: Params, ready: Prompts, draws: Draws, polling: HostPolling) -> Slots:
    """A wave of samples, decoded to their ends or until they are enough."""
    state, now = empty_slots(model, plan), plan
    while not finished(state, now):
        state = decode(model, now, params, ready, state, draws, jnp.int32(polling.limit))
        if polling.strings:
            state = _stop_at_strings(state, now, polling)
        now, state = shrunk(now, state)
        ended = np.asarray(state.out_count) > 0
        if polling.tell:
            polling.tell(int(ended.sum()))
        if polling.enough and ended.reshape(-1, plan.group).all(1).sum() >= polling.enough:
            break
    return state


def _tell(progress: Callable[[int, int], None], before: int, samples: int, ended: int) -> None:
    progress(min(before + ended, samples), samples)


def _width(seen: np.ndarray) -> int:
    """Columns of a wave's prompts: all that there are, or a half, or a quarter, where that holds the longest."""
    whole, longest = seen.shape[1], int(seen.sum(1).max())
    return min(width for width in (whole, -(-whole // 2), -(-whole // 4)) if width >= longest)


def _pieces(state: Slots, begun: PartialSamples | None) -> dict[str, np.ndarray]:
    """A wave's arrays where some samples have not ended."""
    lengths, partial, untouched = interrupted(state, begun)
    found = {"lengths": lengths, "partial": partial}
    if begun is not None:
        for name, out in (("tokens", state.out_tokens), ("logps", state.out_logps)):
            found[name] = np.where(untouched[:, None], getattr(begun, name), np.asarray(out))
        found["finished"] = np.where(untouched, begun.finished, np.asarray(state.out_stopped))
    return found


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


def _stop_at_strings(state: Slots, plan: Plan, polling: HostPolling) -> Slots:
    """Ends the samples whose text holds a stop string at the token that completed it."""
    sample, count, done = (np.array(x) for x in (state.sample, state.count, state.done))
    out_count, stopped, out_stopped = (np.array(x) for x in (state.out_count, state.stopped, state.out_stopped))
    tokens = np.asarray(state.out_tokens)
    for b in np.flatnonzero(sample < plan.samples):
        cut = polling.cut(tokens[sample[b], : count[b]], int(sample[b]) // plan.group)
        if cut < count[b]:
            count[b], done[b], stopped[b] = cut, True, True
            out_count[sample[b]], out_stopped[sample[b]] = cut, True
    for n in np.flatnonzero(out_count):
        cut = polling.cut(tokens[n, : out_count[n]], int(n) // plan.group)
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


def cut_at_strings(ids: np.ndarray, strings: tuple[str, ...], tokenizer: Decoder, prompt: Sequence[int] = ()) -> int:
    """The least number of leading tokens of `ids` whose text holds one of `strings`; len(ids) when none does.

    The text is what they add to that of `prompt`.
    """

    def hit(count: int) -> bool:
        text = text_of(ids[:count].tolist(), tokenizer, prompt)
        return any(s in text for s in strings)

    if not hit(len(ids)):
        return len(ids)
    return next(count for count in range(1, len(ids) + 1) if hit(count))


def _results(state: Slots, prompt_routes: jax.Array | None) -> dict[str, np.ndarray]:
    """A wave's arrays, samples or prompts first; only those that are kept."""
    found = {
        "tokens": state.out_tokens,
        "logps": state.out_logps,
        "lengths": state.out_count,
        "finished": state.out_stopped,
        "depth": state.out_depths,
        "routes": state.out_routes,
        "prompt_routes": prompt_routes,
        "counts": jnp.stack([state.step, state.accepted, state.drafted])[None],
    }
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def _rollout(
    found: list[dict[str, np.ndarray]],
    order: np.ndarray,
    group: int,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    times: int,
) -> Rollout:
    """The waves' arrays as one rollout, its prompts, which were taken in `order`, in their own again and once each
    instead of so many `times`.
    """
    for wave in found:
        if "prompt_routes" in wave:
            blank = prompts.shape[1] - wave["prompt_routes"].shape[1]
            wave["prompt_routes"] = np.pad(wave["prompt_routes"], ((0, 0), (blank, 0), (0, 0), (0, 0)))
    whole = {name: np.concatenate([wave[name] for wave in found]) for name in found[0]}
    steps, accepted, drafted = whole.pop("counts").sum(0)
    place = np.argsort(order)
    rows = (place[:, None] * group + np.arange(group)).reshape(-1)
    kept: dict[str, Any] = {name: x[place[::times] if name in BY_PROMPT else rows] for name, x in whole.items()}
    mask = np.arange(kept["tokens"].shape[1]) < kept["lengths"][:, None]
    for name in ("tokens", "logps", "depth"):
        if name in kept:
            kept[name] = np.where(mask, kept[name], 0).astype(kept[name].dtype)
    return Rollout(
        **kept,
        mask=mask.astype(np.float32),
        prompts=prompts[::times],
        prompt_mask=prompt_mask[::times],
        steps=int(steps),
        acceptance=float(accepted / max(drafted, 1)),
    )
