"""Scores of given tokens under a model: what the sampler would have said of them, from whole passes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infer.checks import known_prompts
from infer.feedback import feedback_of
from infer.recurrence import Recurrence, depths_by_sample, plan_recurrence
from infer.sampler import bucket, pad_prompts
from infer.sampling import at_least
from infer.thoughts import NO_THOUGHTS, Thoughts, check_thoughts
from infer.waves import devices
from model.latent import Columns, think
from model.lm import Model, Params
from model.sharding import replicate
from settings.data import SoftConfig

BATCH, CHUNK = 32, 16
KINDS = (np.float32, bool, np.float32)  # of log-probs, greedy choices and self-certainty
Array = Any  # NumPy's on the host, JAX's in a program


@dataclass(frozen=True)
class Scores:
    """What a model thinks of N completions of at most T tokens; 0 and False past their ends.

    `logps` [N, T] fp32, natural log-probs at temperature 1; `greedy` [N, T] where a token is the likeliest (argmax);
    `self_certainty` [N, T] fp32 in nats, of each token's distribution p over V tokens: KL(uniform || p), that is
    -mean_v log(V p_v), 0 for a model that knows nothing (2502.18581; that of a completion is the mean over its tokens);
    `lengths` [N] tokens of each.
    """

    logps: np.ndarray
    greedy: np.ndarray
    self_certainty: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """A batch: `tokens` [B, S + 1], the last column only as a target; `segments` [B, S]; of each row the `start` [B] of
    the columns that predict its completion, how many they are, `count` [B], and its iterations, `depth` [B].
    """

    tokens: Array
    segments: Array
    start: Array
    count: Array
    depth: Array | None


@dataclass(frozen=True)
class Layout:
    """What a program depends on beside its shapes: columns whose logits are held at once, `chunk`; `thoughts` from
    column `first` on, mixed by the rules `soft`; the most `iterations` of a recurrent core.
    """

    chunk: int
    thoughts: int = 0
    first: int | None = None
    iterations: int = 0
    soft: SoftConfig | None = None


def score(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    completions: Sequence[Sequence[int]] | np.ndarray,
    *,
    recurrence: Recurrence | None = None,
    thoughts: Thoughts | None = None,
    batch: int = BATCH,
    chunk: int = CHUNK,
) -> Scores:
    """Scores N completions, each after its own of N prompts (token id lists, no padding).

    `recurrence`: the depth of a recurrent model, one or one for each completion; `thoughts` that every prompt ends in.
    `batch` rows of like length are in a pass, padded to one of few widths (each a program), and the logits of `chunk`
    columns of them are held at a time. On a mesh call `on_mesh(mesh)(score)`. The scores are those of `generate` at
    temperature 1; where a recurrent core keeps fewer `kv_slots` than iterations, those of a whole pass, as in training.

    Raises ValueError for what is no prompt or completion, for ids that the model does not know, for pairs that do not
    fit its context, and for an exit or a warm start, which only decoding has.
    """
    asked = known_prompts(model.config, prompts)
    given = known_prompts(model.config, completions, "completion")
    _check_given(model, asked, given)
    for name, value in (("batch", batch), ("chunk", chunk)):
        at_least(name, value, 1)
    planned = plan_recurrence(model, len(asked), recurrence)
    if planned and (planned.exit or planned.warm):
        raise ValueError(f"exit and warm_start belong to decoding, and scores are of whole passes; found {recurrence}")
    iterations = planned.depth if planned else 0
    varied = depths_by_sample(model, planned, recurrence)
    depths = np.full(len(asked), iterations) if varied is None else varied
    layout = _layout(asked, thoughts, chunk, iterations)
    lengths = np.array([len(row) for row in given])
    logps, greedy, certainty = (np.zeros((len(given), lengths.max()), kind) for kind in KINDS)
    for numbers, rows in _batches(asked, given, depths if planned else None, layout, batch):
        found = jax.device_get(measure(model, layout, params, jax.tree.map(jnp.asarray, rows)))
        for whole, part in zip((logps, greedy, certainty), found, strict=True):
            width = min(whole.shape[1], part.shape[1])
            whole[numbers, :width] = part[: len(numbers), :width]
    return Scores(logps, greedy, certainty, lengths)


def windows(ids: Sequence[int], first: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a text of any length into (prompt, completion) pairs for `score` that hold each of its tokens once.

    A pair is read in at most `length` columns, and all but the last predict as many tokens; that one has as much of the
    text before it as fits. `first` is read before the text. The rolling windows of lm-evaluation-harness.
    """
    at_least("length", length, 1)
    whole = [first, *ids]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        yield whole[max(end - length, 0) : start + 1], whole[start + 1 : end + 1]


def compilations() -> int:
    """How many programs of this module this process has compiled."""
    program: Any = measure
    return program._cache_size()


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(model: Model, layout: Layout, params: Params, rows: Rows) -> tuple[jax.Array, ...]:
    """Log-probs, whether greedy and self-certainty of the completions of a batch: three arrays [B, >= S]."""
    hidden, (count, width) = _hidden(model, layout, params, rows), rows.segments.shape
    chunks = -(-width // layout.chunk)

    def some(number: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        columns = rows.start[:, None] + number * layout.chunk + jnp.arange(layout.chunk)
        columns = jnp.minimum(columns, width - 1)
        states = jnp.take_along_axis(hidden, columns[..., None], 1)
        targets = jnp.take_along_axis(rows.tokens, columns + 1, 1)
        measured = of_logits(model.logits(params, states), targets)
        return jax.tree.map(lambda all_, part: _put(all_, part, number * layout.chunk), found, measured)

    found = tuple(jnp.zeros((count, chunks * layout.chunk), kind) for kind in KINDS)
    found = jax.lax.fori_loop(0, -(-rows.count.max() // layout.chunk), some, found)
    inside = jnp.arange(chunks * layout.chunk) < rows.count[:, None]
    return replicate(jax.tree.map(lambda x: jnp.where(inside, x, jnp.zeros_like(x)), found))


def of_logits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    """Log-probs of `targets` [...], whether they are the argmax, and self-certainty, of logits [..., V]."""
    total = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    certainty = total - logits.mean(-1) - jnp.log(logits.shape[-1])
    return chosen - total, jnp.argmax(logits, -1) == targets, certainty


def _put(whole: jax.Array, part: jax.Array, column: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, column, 1)


def _hidden(model: Model, layout: Layout, params: Params, rows: Rows) -> jax.Array:
    """The states [B, S, D] of all columns."""
    (count, width), segments = rows.segments.shape, rows.segments
    columns = jnp.arange(width)
    positions = jnp.maximum(jnp.cumsum(segments, 1) - 1, 0)
    first, options = layout.first, dict[str, Any](feedback=feedback_of(model, params, layout.soft))
    if rows.depth is not None:
        options["depth"] = rows.depth
        if first is not None:
            options["cache"] = model.init_cache(count, width, depth=layout.iterations)
    begin = 0 if first is None else first
    latent = jnp.broadcast_to((columns >= begin) & (columns < begin + layout.thoughts), segments.shape)
    read = Columns(rows.tokens[:, :-1], positions, segments, latent)
    return think(model, params, read, thoughts=layout.thoughts, first=first, **options).hidden


def _layout(prompts: list[np.ndarray], thoughts: Thoughts | None, chunk: int, iterations: int) -> Layout:
    """Where prompts end in thoughts, padding on the left puts those of all rows in one place."""
    asked = thoughts or NO_THOUGHTS
    if not asked.count:
        return Layout(chunk)
    tokens, mask = pad_prompts(prompts)
    check_thoughts(tokens, mask, asked)
    return Layout(chunk, asked.count, tokens.shape[1] - asked.after - asked.count, iterations, asked.soft)


def _batches(
    prompts: list[np.ndarray],
    completions: list[np.ndarray],
    depths: np.ndarray | None,
    layout: Layout,
    batch: int,
) -> Iterator[tuple[np.ndarray, Rows]]:
    """Batches of equally many rows, the longest first, so that what does not fit into memory fails at once; with the
    numbers of their rows, of which the last batch may have fewer.
    """
    ends = [bucket(max(map(len, prompts))) if layout.thoughts else len(prompt) for prompt in prompts]
    widths = np.array([end + len(row) - 1 for end, row in zip(ends, completions, strict=True)])
    order, parts = np.argsort(-widths, kind="stable"), devices()
    count = -(-len(order) // (-(-batch // parts) * parts))
    size = -(-len(order) // (count * parts)) * parts
    for begin in range(0, len(order), size):
        numbers = order[begin : begin + size]
        rows = _empty_rows(size, bucket(int(widths[numbers[0]])), depths is not None)
        for row, n in enumerate(numbers):
            whole = np.concatenate([prompts[n], completions[n]])
            start = ends[n] - len(prompts[n])
            rows.tokens[row, start : start + len(whole)] = whole
            rows.segments[row, start : start + len(whole) - 1] = 1
            rows.start[row], rows.count[row] = ends[n] - 1, len(completions[n])
            if rows.depth is not None and depths is not None:
                rows.depth[row] = depths[n]
        yield numbers, rows


def _empty_rows(rows: int, width: int, recurrent: bool) -> Rows:
    ints = lambda *shape: np.zeros(shape, np.int32)  # noqa: E731
    depth = np.ones(rows, np.int32) if recurrent else None
    return Rows(ints(rows, width + 1), ints(rows, width), ints(rows), ints(rows), depth)


def _check_given(model: Model, prompts: list[np.ndarray], completions: list[np.ndarray]) -> None:
    """Raises ValueError unless there is a completion for each prompt, of tokens that are predicted, and room."""
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each prompt")
    room, size = model.config.max_length, model.config.vocab_size
    for n, (prompt, row) in enumerate(zip(prompts, completions, strict=True)):
        if row.max() >= size:  # a pair, which is read but not predicted
            raise ValueError(f"completion {n} holds the id {row.max()}, but the model predicts ids 0..{size - 1}")
        if len(prompt) + len(row) > room + 1:
            raise ValueError(
                f"prompt {n} of {len(prompt)} tokens and its completion of {len(row)} do not fit the model's context of"
                f" {room} (the last token is not read); shorten one, or cut a long text by infer.scoring.windows"
            )
