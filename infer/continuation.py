"""Samples that start from tokens of their own: interrupted ones, turns, budgets, nodes of a search tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import numpy as np

from infer.recurrence import Recurrence
from model.checks import check_ids
from model.config import ModelConfig


@dataclass(frozen=True)
class Continuation:
    """What N samples start from, each after the prompt `group_of` [N] names (None: n // SamplingParams.n).

    The first `lengths` [N] of `tokens` [N, C] are a sample's prefix: read, not drawn, with `logps` [N, C] of when they
    were. Tokens flagged in `forced` [N, C] are given and not the policy's: mask 0, log-prob 0. Flagged at or after
    `lengths` they are fed when the sample comes there, in place of what would be drawn; a stop token among those ends
    its sample, one inside a prefix does not. `finished` [N]: samples that have ended and get no further token. `depth`
    [N, C]: iterations spent on the prefix of a recurrent model, for the rollout's `depth`. `number` [N]: whose noise
    a sample draws with (None: its own index). C is at most max_new_tokens, which bounds prefix and new tokens together;
    `until` [N] is a lower bound of a sample's own, at which it is cut (None: there is none).
    """

    tokens: np.ndarray
    logps: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    forced: np.ndarray | None = None
    depth: np.ndarray | None = None
    group_of: np.ndarray | None = None
    number: np.ndarray | None = None
    until: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """N."""
        return len(self.lengths)


def empty_continuation(samples: int, length: int, group_of: np.ndarray | None = None) -> Continuation:
    """So many samples that start right after their prompts, with room for `length` tokens."""
    ints, shape = np.zeros(samples, np.int32), (samples, length)
    blank = np.zeros(shape, np.int32), np.zeros(shape, np.float32), ints, np.zeros(samples, bool)
    return Continuation(*blank, forced=np.zeros(shape, bool), group_of=group_of)


def continuation_of(rollout: Any, lengths: np.ndarray | None = None) -> Continuation:
    """The samples of a rollout, to go on from where they are, or from their first `lengths` [N] tokens."""
    kept = rollout.lengths if lengths is None else np.minimum(lengths, rollout.lengths)
    inside = np.arange(rollout.tokens.shape[1]) < kept[:, None]
    blank = lambda x: np.where(inside, x, np.zeros((), x.dtype))  # noqa: E731
    return Continuation(
        blank(rollout.tokens),
        blank(rollout.logps),
        np.asarray(kept, np.int32),
        (kept == rollout.lengths) & rollout.finished,
        forced=inside & (rollout.mask == 0),
        depth=None if rollout.depth is None else blank(rollout.depth),
        group_of=rollout.group_of,
    )


def force(
    continuation: Continuation, tokens: Sequence[Sequence[int]], at: np.ndarray | None = None, *, read: bool = False
) -> Continuation:
    """Gives each sample n `tokens[n]` from column `at[n]` on, by default right after its prefix.

    Samples that are given any are no longer finished. `read`: the tokens join the prefix (all at once, in the prefill;
    only where they stand right after it), instead of being fed one by one in decoding. Raises ValueError where tokens
    would stand inside a prefix or apart from the one they are to join.
    """
    start = continuation.lengths if at is None else np.asarray(at)
    ends = start + np.array([len(row) for row in tokens])
    if len(tokens) != continuation.samples or (start < continuation.lengths).any():
        raise ValueError(
            f"forced tokens are {continuation.samples} rows at or after the prefixes' lengths"
            f" {continuation.lengths.tolist()}; found {len(tokens)} rows at {start.tolist()}"
        )
    if read and (start != continuation.lengths).any():
        raise ValueError(f"read=True forces tokens right after the prefixes: leave at={start.tolist()} out")
    wide = widened(continuation, max(int(ends.max()), continuation.tokens.shape[1]))
    ids, forced, logps = wide.tokens.copy(), forced_of(wide).copy(), wide.logps.copy()
    for n, row in enumerate(tokens):
        ids[n, start[n] : ends[n]], forced[n, start[n] : ends[n]], logps[n, start[n] : ends[n]] = row, True, 0
    return replace(
        wide,
        tokens=ids,
        forced=forced,
        logps=logps,
        lengths=np.asarray(ends if read else continuation.lengths, np.int32),
        finished=continuation.finished & (ends == start),
    )


def widened(continuation: Continuation, length: int) -> Continuation:
    """The same with room for `length` tokens."""
    more = length - continuation.tokens.shape[1]
    wide = {name: getattr(continuation, name) for name in ("tokens", "logps", "forced", "depth")}
    return replace(continuation, **{name: np.pad(x, ((0, 0), (0, more))) for name, x in wide.items() if x is not None})


def forced_of(continuation: Continuation, length: int | None = None) -> np.ndarray:
    """Which of at most `length` tokens (None: those that it has room for) are forced [N, length]."""
    forced = continuation.forced
    found = np.zeros(continuation.tokens.shape, bool) if forced is None else np.asarray(forced, bool)
    return np.pad(found, ((0, 0), (0, 0 if length is None else length - found.shape[1])))


def groups_of(continuation: Continuation, prompts: int, n: int) -> np.ndarray:
    """The prompt of each sample [N]; raises ValueError unless every prompt has one and no sample another."""
    if continuation.group_of is None:
        if continuation.samples != prompts * n:
            raise ValueError(
                f"a continuation of {continuation.samples} samples was given for {prompts} prompts x n={n}; say in"
                " group_of which prompt each belongs to"
            )
        return np.repeat(np.arange(prompts, dtype=np.int32), n)
    group_of = np.asarray(continuation.group_of, np.int32)
    if group_of.shape != continuation.lengths.shape or set(group_of.tolist()) != set(range(prompts)):
        raise ValueError(
            f"continuation.group_of names for each of {continuation.samples} samples one of {prompts} prompts, and each"
            f" prompt at least once; found {group_of.tolist()}"
        )
    return group_of


def check_continuation(continuation: Continuation, length: int, config: ModelConfig) -> None:
    """Raises ValueError unless shapes agree, no prefix is longer than `length`, and the model knows the ids."""
    samples, width = continuation.tokens.shape
    for name in ("logps", "forced", "depth"):
        array = getattr(continuation, name)
        if array is not None and array.shape != (samples, width):
            raise ValueError(
                f"continuation.{name} must be of shape ({samples}, {width}), that of its tokens; found {array.shape}"
            )
    if width > length:
        raise ValueError(
            f"a continuation of {width} columns was given for max_new_tokens={length}, which bounds prefix and new"
            " tokens together"
        )
    for name in ("lengths", "finished", "number", "until"):
        array = getattr(continuation, name)
        if array is not None and np.shape(array) != (samples,):
            raise ValueError(f"continuation.{name} must be of shape ({samples},); found {np.shape(array)}")
    lengths = np.asarray(continuation.lengths)
    if lengths.min() < 0 or lengths.max() > width:
        raise ValueError(f"continuation.lengths must be from 0 to {width}; found {lengths.tolist()}")
    used = (np.arange(width) < lengths[:, None]) | forced_of(continuation)
    check_ids(config, np.asarray(continuation.tokens), "continuation.tokens", used)


@flax.struct.dataclass
class Prefixes:
    """The continuation of a wave's S samples, as the compiled sampler reads it.

    `row` [S] of the prefill that a sample starts from; `start` [S] how many of its tokens that row holds; `length` [S]
    of its prefix (the rest of it is fed in decoding); `until` [S] tokens at most; `tokens`, `logps` [S, T] where
    `given` [S, T], else drawn; `depth` [S, T] or None; `done`, `finished` [S].
    """

    row: Any
    start: Any
    length: Any
    until: Any
    tokens: Any
    logps: Any
    given: Any
    depth: Any
    done: Any
    finished: Any


def prefixes_of(continuation: Continuation, length: int, recurrent: bool) -> Prefixes:
    """All samples' prefixes for at most `length` tokens a sample, none of them in a row of the prefill yet."""
    wide = widened(continuation, length)
    inside, forced = np.arange(length) < wide.lengths[:, None], forced_of(wide)
    until = np.full(wide.samples, length) if wide.until is None else np.minimum(wide.until, length)
    done = np.asarray(wide.finished, bool) | (wide.lengths >= until)
    depth = np.zeros(wide.tokens.shape, np.int32) if wide.depth is None else wide.depth
    return Prefixes(
        row=np.zeros(wide.samples, np.int32),
        start=np.where(done, wide.lengths, 0).astype(np.int32),
        length=np.asarray(wide.lengths, np.int32),
        until=until.astype(np.int32),
        tokens=np.asarray(wide.tokens, np.int32),
        logps=np.where(forced, 0, wide.logps).astype(np.float32),
        given=inside | forced,
        depth=depth.astype(np.int32) if recurrent else None,
        done=done,
        finished=np.asarray(wide.finished, bool),
    )


def prefix_shapes(samples: int, length: int, recurrent: bool) -> Prefixes:
    """The shapes of the prefixes of so many samples."""
    made = prefixes_of(empty_continuation(samples, length), length, recurrent)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)  # type: ignore[no-any-return]


def is_decoded(config: ModelConfig, recurrence: Recurrence | None, thoughts: object) -> bool:
    """Whether prefixes are fed one by one in decoding, because a prefill leaves other states than decoding does.

    A prefill ends the iterations of all its columns together, starts them from no token before, thinks at the end of
    its rows alone, and where iterations share slots of the cache its columns see one another's latest iteration.
    """
    asked = recurrence is not None and bool(recurrence.exit or recurrence.warm_start)
    return bool(thoughts) or asked or (config.depth == "recurrent" and bool(config.recurrent.kv_slots))


def interrupted(state: Any, prefixes: Prefixes | None) -> dict[str, np.ndarray]:
    """Of a wave [S] of which some have not ended: lengths, whether they are `partial`, and what is their own again.

    The tokens of seated samples are in the output rows already; what nobody seated, or what has not come to the end of
    its prefix, is what it was.
    """
    lengths = np.array(state.out_count)
    partial = lengths == 0
    for sample, count in zip(np.asarray(state.sample), np.asarray(state.count), strict=True):
        if sample < len(lengths) and partial[sample]:
            lengths[sample] = count
    if prefixes is None:
        return {"lengths": lengths, "partial": partial}
    behind = partial & (lengths <= np.asarray(prefixes.length))
    outputs = {"tokens": state.out_tokens, "logps": state.out_logps, "depth": state.out_depths}
    kept: dict[str, Any] = {name: getattr(prefixes, name) for name in outputs if getattr(prefixes, name) is not None}
    inside = np.arange(kept["tokens"].shape[1]) < np.asarray(prefixes.length)[:, None]
    same = {
        name: np.where(behind[:, None], np.where(inside, x, 0), np.asarray(outputs[name])) for name, x in kept.items()
    }
    return same | {
        "lengths": np.where(behind, prefixes.length, lengths),
        "partial": partial & ~(behind & prefixes.done),
        "finished": np.where(behind, prefixes.finished, np.asarray(state.out_stopped)),
    }
