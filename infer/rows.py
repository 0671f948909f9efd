"""Which rows the prefill of a wave reads, and which samples start from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from infer.budget import Forcing
from infer.continuation import Continuation, Prefixes, prefixes_of
from infer.plan import SamplerPlan

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Wave:
    """`tokens`, `mask` [R, Lp] of the prefill's rows, left-padded, of prompts `prompt_of` [R] (P where a row is none's
    alone), `depths` [R] where they vary, `seeds` [R] of thoughts that differ; `samples` [S] the numbers of the samples;
    `prefixes` of a continuation; `forcing` of a thinking budget.
    """

    tokens: np.ndarray
    mask: np.ndarray
    prompt_of: np.ndarray
    samples: np.ndarray
    depths: np.ndarray | None = None
    seeds: np.ndarray | None = None
    prefixes: Prefixes | None = None
    forcing: Forcing | None = None


def prompt_waves(
    tokens: np.ndarray,
    mask: np.ndarray,
    planned: SamplerPlan,
    depths: np.ndarray | None,
    seeds: np.ndarray | None = None,
) -> Iterator[Wave]:
    """Waves over prompts [P, Lp] whose samples, a group for each row, start from them; `depths`, `seeds` [N] where they
    vary.

    Prompts of like length are in one wave, for less padding; and samples of like depth in slots at a time, for a step
    of decoding takes as long as its deepest row. The last wave repeats its last row.
    """
    waves, group, times = planned.waves, planned.plan.group, planned.copies
    lengths = np.repeat(mask.sum(1), times)
    order = np.argsort(lengths, kind="stable") if waves.count > 1 else np.arange(len(lengths))
    if depths is not None:
        order = order[np.argsort(depths[order], kind="stable")]
    for first in range(0, waves.count * waves.prompts, waves.prompts):
        rows = order[np.minimum(np.arange(first, first + waves.prompts), len(order) - 1)]
        # Every lane has its share of the deep ones.
        rows = rows.reshape(-1, waves.lanes).T.reshape(-1) if depths is not None else rows
        prompt_of = rows // times
        width = narrower(mask[prompt_of]) if waves.count > 1 else mask.shape[1]
        yield Wave(
            tokens[prompt_of][:, -width:],
            mask[prompt_of][:, -width:],
            prompt_of,
            (rows[:, None] * group + np.arange(group)).reshape(-1),
            None if depths is None else depths[rows],
            None if seeds is None else seeds[rows],
        )


def narrower(mask: np.ndarray) -> int:
    """Columns of a wave's prompts: all that there are, or a half, or a quarter, where that holds the longest."""
    whole, longest = mask.shape[1], int(mask.sum(1).max())
    return min(width for width in (whole, -(-whole // 2), -(-whole // 4)) if width >= longest)


def read_lengths(continuation: Continuation, length: int, *, decoded: bool, routes: bool) -> np.ndarray:
    """How many tokens of each sample's prefix the prefill reads [N]; none of those that get no further token, unless
    their `routes` are asked for.
    """
    until = length if continuation.until is None else np.minimum(continuation.until, length)
    done = np.asarray(continuation.finished, bool) | (continuation.lengths >= until)
    unread = done & (not routes) | decoded
    return np.where(unread, 0, continuation.lengths)


def prefix_columns(longest: int, length: int) -> int:
    """Columns that prefixes of at most `longest` of `length` tokens add to the prefill: few widths, each a program."""
    step = max(length // 4, 1)
    return -(-longest // step) * step


def prefix_rows(count: int) -> int:
    """Rows for so many prefixes: a power of two, for each number of rows is a program."""
    return 1 << (count - 1).bit_length() if count else 0


@dataclass(frozen=True)
class Layout:
    """The rows of one lane by (prompt, depth, prefix): those of prompts, and those of prefixes after them. Samples of
    the same share one.
    """

    prompts: dict[Key, int] = field(default_factory=dict)
    prefixes: dict[Key, int] = field(default_factory=dict)

    def add(self, prompt: int, depth: int, prefix: tuple[int, ...]) -> tuple[bool, int]:
        """Where a sample starts: (whether from a prefix, the row among those)."""
        row = self.prompts.setdefault((prompt, depth, ()), len(self.prompts))
        if not prefix:
            return False, row
        return True, self.prefixes.setdefault((prompt, depth, prefix), len(self.prefixes))


def continued_waves(
    prompts: list[np.ndarray],
    group_of: np.ndarray,
    continuation: Continuation,
    read: np.ndarray,
    planned: SamplerPlan,
    depths: np.ndarray | None,
) -> Iterator[Wave]:
    """Waves over the samples of a continuation, in their order; `read` [N] as `read_lengths` gives it."""
    plan, lanes = planned.plan, planned.plan.lanes
    numbers = np.arange(planned.waves.count * plan.samples).reshape(-1, lanes, plan.samples // lanes)
    seats, layouts = np.zeros((*numbers.shape, 2), int), {}
    for wave, lane in np.ndindex(numbers.shape[:2]):
        layout = layouts[wave, lane] = Layout()
        for i, n in enumerate(np.minimum(numbers[wave, lane], len(group_of) - 1)):
            depth = 0 if depths is None else int(depths[n])
            seats[wave, lane, i] = layout.add(
                int(group_of[n]), depth, tuple(continuation.tokens[n, : read[n]].tolist())
            )
    # Where depths vary, as many rows as samples: how many of them are alike must not decide which program runs.
    most = numbers.shape[2] if depths is not None else max(len(layout.prompts) for layout in layouts.values())
    extra = prefix_rows(max(len(layout.prefixes) for layout in layouts.values()))
    prefixes = prefixes_of(continuation, plan.max_new_tokens, plan.recurrence is not None)
    prefixes = replace(prefixes, start=np.where(prefixes.done, prefixes.length, read).astype(np.int32))
    for wave in range(len(numbers)):
        parts = [_rows_of(layouts[wave, lane], most, extra, prompts, plan.prompt_length) for lane in range(lanes)]
        tokens, mask, prompt_of, deep = (np.concatenate(x) for x in zip(*parts, strict=True))
        within = np.where(seats[wave, ..., 0], most, 0) + seats[wave, ..., 1]
        rows = (within + np.arange(lanes)[:, None] * (most + extra)).reshape(-1).astype(np.int32)
        samples = numbers[wave].reshape(-1)
        real, samples = samples < len(group_of), np.minimum(samples, len(group_of) - 1)
        mine = replace(jax.tree.map(lambda x, n=samples: x[n], prefixes), row=rows)
        mine = replace(mine, done=mine.done | ~real)
        yield Wave(tokens, mask, prompt_of, samples, None if depths is None else deep, prefixes=mine)


def _rows_of(
    layout: Layout, most: int, extra: int, prompts: list[np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """tokens, mask, the prompt and the depth of a lane's rows; those that nobody starts from hold one token."""
    tokens, mask = np.zeros((most + extra, width), np.int32), np.zeros((most + extra, width), bool)
    tokens[:, -1], mask[:, -1] = prompts[0][-1], True
    prompt_of, depth = np.full(most + extra, len(prompts)), np.ones(most + extra, np.int32)
    places = layout.prompts | {k: most + row for k, row in layout.prefixes.items()}
    for (prompt, deep, prefix), row in places.items():
        whole = [*prompts[prompt], *prefix]
        tokens[row, width - len(whole) :], mask[row, width - len(whole) :] = whole, True
        prompt_of[row], depth[row] = len(prompts) if prefix else prompt, max(deep, 1)
    return tokens, mask, prompt_of, depth
