"""Continuous thoughts: at latent positions a model reads its own state instead of a token (Coconut, 2412.06769).

The input embedding of a latent position is the hidden state, after the final norm, of the position before it. A row of
n latent positions in a chain therefore needs n + 1 forward passes, and gradients flow through all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.cache import Cache
from model.checks import check_pass, known
from model.depth.core import layers_of
from model.hooks import Captured, join_columns, patched
from model.lm import Model, Output, Params
from model.reports import merge_passes


class Fed(NamedTuple):
    """What is fed back at a thought: `embeds` [B, S, D], and a tree [B, S, ...] of what they were chosen by."""

    embeds: jax.Array
    choice: Any = None


Feedback = Callable[[jax.Array, jax.Array], Fed]  # (states [B, S, D], the number of the thought) -> what goes in
THOUGHTS = "thoughts"  # the hook point of what is fed back, [B, thoughts, D]


class Columns(NamedTuple):
    """Rows of `tokens`, `positions`, `segments` [B, S], and `latent` [B, S], true where a state replaces the token."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    latent: jax.Array

    def between(self, start: int, stop: int) -> Columns:
        """The columns from `start` to `stop`."""
        return Columns(*(x[:, start:stop] for x in self))


def think(
    model: Model,
    params: Params,
    rows: Columns,
    *,
    thoughts: int,
    first: int | None = None,
    feedback: Feedback | None = None,
    cache: Cache | None = None,
    **options: Any,
) -> Output:
    """Runs rows with latent positions: `hidden` [B, S, D] of every column, as `model.apply` returns it.

    In latent columns the state of the column before replaces the token; a row may have fewer of them than `thoughts`,
    the (static) most of any row.
    With `first`, the (static) column of the first latent in all rows, each column is computed once: a pass over the
    columns before it, one per thought and one over the rest share a cache. Latents then lie in columns first ..
    first + thoughts - 1. Without it, they may lie anywhere, and thoughts + 1 passes see whole rows: the definition.
    `feedback` makes of states what goes in (`mapped` of a function of states); None feeds them back as they are, as the
    paper does. What it chose by, [B, thoughts, ...], is the output's `choices`, where `first` is given.
    `cache`, an empty one, is filled and returned, for decoding to go on from; thoughts then need `first`.
    `options` go to `model.apply` (depth, key, train, capture, patches); here `thoughts` [B, thoughts, D], which are the
    embeddings fed back, NaN where a row has fewer, can be captured and replaced as well. Each of several passes is
    computed again in the backward pass; the cached pass of a recurrent core has none, so leave `first` out to train
    one.
    The reports count every column once, but for the work, which is that of all passes. Raises ValueError for latents
    outside the columns that are computed, where the mask can be seen (outside `jit`), and for parameters that hold
    taps.
    """
    _check(model, params, rows, thoughts, first, cache, options)
    rows = rows._replace(latent=rows.latent.astype(bool))
    if not thoughts:
        return model.apply(params, *rows[:3], cache, **options)
    options, feed = dict(options), _feed(feedback, (options.get("patches") or {}).get(THOUGHTS))
    asked, replaced = options.pop("capture", ()), dict(options.pop("patches", None) or {})
    replaced.pop(THOUGHTS, None)
    inner = {"capture": tuple(name for name in asked if name != THOUGHTS), "patches": replaced}
    options |= {name: value for name, value in inner.items() if value}
    if first is None:
        out, fed = _recompute(model, params, rows, thoughts, feed, options)
    else:
        out, fed = _reuse(model, params, rows, (first, thoughts), feed, cache, options)
    return dataclasses.replace(out, captured={**out.captured, THOUGHTS: fed}) if THOUGHTS in asked else out


def _feed(feedback: Feedback | None, patch: Any) -> Feedback:
    """What goes in at a thought: the states as `feedback` maps them, or the patch [B, thoughts, D] unless it is NaN."""

    def feed(hidden: jax.Array, thought: jax.Array) -> Fed:
        fed = Fed(hidden) if feedback is None else feedback(hidden, thought)
        if patch is None:
            return fed
        return fed._replace(embeds=patched(fed.embeds, jnp.asarray(patch)[:, thought][:, None], THOUGHTS))

    return feed


def _pass(model: Model, options: Mapping[str, Any], in_scan: bool = False) -> Callable[..., Output]:
    """One forward pass, (params, columns, embeds or None, cache or None) -> Output, recomputed when differentiated."""

    def run(params: Params, columns: Columns, embeds: jax.Array | None, cache: Cache | None) -> Output:
        return model.apply(params, *columns[:3], cache, embeds=embeds, **options)

    return jax.checkpoint(run, prevent_cse=not in_scan)


def _recompute(
    model: Model, params: Params, rows: Columns, thoughts: int, feed: Feedback, options: Mapping[str, Any]
) -> tuple[Output, jax.Array]:
    latent, blank = rows.latent, jnp.asarray(jnp.nan, model.config.dtype)
    rank = jnp.where(latent, latent.cumsum(1), 0)

    def one(embeds: jax.Array, thought: jax.Array) -> tuple[jax.Array, None]:
        states, _ = feed(_pass(model, options, in_scan=True)(params, rows, embeds, None).hidden, thought - 1)
        before = jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return jnp.where((rank == thought)[..., None], before, embeds).astype(embeds.dtype), None

    embeds = jnp.full((*latent.shape, model.config.d_model), blank)
    embeds, _ = jax.lax.scan(one, embeds, jnp.arange(1, thoughts + 1))
    # The last pass holds every column with its final input: what the others report, it reports again.
    fed = jnp.stack([_thought(embeds, rank == number) for number in range(1, thoughts + 1)], 1)
    out = _pass(model, options)(params, rows, embeds, None)
    work = jax.tree.map(lambda x: (thoughts + 1) * x, out.reports.work)
    return dataclasses.replace(out, reports=dataclasses.replace(out.reports, work=work)), fed


def _thought(embeds: jax.Array, here: jax.Array) -> jax.Array:
    """The embedding [B, D] in the one column of each row where `here` [B, S] is set, NaN in rows without one."""
    one = jnp.where(here[..., None], embeds, 0).sum(1)
    return jnp.where(here.any(1)[:, None], one, jnp.nan)


def _reuse(
    model: Model,
    params: Params,
    rows: Columns,
    columns: tuple[int, int],
    feed: Feedback,
    cache: Cache | None,
    options: Mapping[str, Any],
) -> tuple[Output, jax.Array]:
    """`columns`: that of the first latent, and how many there are."""
    (count, width), blank = rows.tokens.shape, jnp.asarray(jnp.nan, model.config.dtype)
    run, (first, thoughts), last = _pass(model, options), columns, sum(columns)

    def one(carry: Any, column: tuple[Columns, jax.Array]) -> tuple[Any, tuple[Any, ...]]:
        # A row without a thought here keeps its token, and is computed with the others.
        fed = feed(carry[1], column[1])
        embeds = jnp.where(column[0].latent[..., None], fed.embeds.astype(blank.dtype), blank)
        out = _pass(model, options, in_scan=True)(params, column[0], embeds, carry[0])
        state = None if out.state is None else out.state[:, 0]
        choice = jax.tree.map(lambda x: x[:, 0], fed.choice)
        return (out.cache, out.hidden), (out.hidden[:, 0], state, out.reports, out.captured, embeds[:, 0], choice)

    start = model.init_cache(count, width, depth=_depth(options)) if cache is None else cache
    before = run(params, rows.between(0, first), None, start)
    by_time = jax.tree.map(lambda x: x.swapaxes(0, 1)[..., None], rows.between(first, last))
    numbered = (by_time, jnp.arange(thoughts))
    (full, _), scanned = jax.lax.scan(one, (before.cache, before.hidden[:, -1:]), numbered)
    hidden, states, reported, captured, fed, chosen = scanned
    parts, reports = [(before.hidden, before.state)], [(first, before.reports)]
    parts += [(hidden.swapaxes(0, 1), None if states is None else states.swapaxes(0, 1))]
    step = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    reports += [(thoughts, merge_passes([(1, step(reported, i)) for i in range(thoughts)]))]
    captures = [before.captured, *(step(captured, i) for i in range(thoughts))]
    if last < width:
        rest = run(params, rows.between(last, width), None, full)
        captures.append(rest.captured)
        full, parts, reports = rest.cache, [*parts, (rest.hidden, rest.state)], [*reports, (width - last, rest.reports)]
    whole, states = (_joined(list(x)) for x in zip(*parts, strict=True))
    core = layers_of(model.config)[1] if model.config.depth == "recurrent" else ()
    inside: Captured = join_columns(captures, core)
    choices = jax.tree.map(lambda x: x.swapaxes(0, 1), chosen)
    kept = None if cache is None else full
    out = Output(whole, kept, merge_passes(reports), states, captured=inside, choices=choices)
    return out, fed.swapaxes(0, 1)


def _joined(parts: list[Any]) -> Any:
    """Parts [B, columns, D] as one, or None where there are none."""
    return None if parts[0] is None else jnp.concatenate(parts, 1)


def _depth(options: Mapping[str, Any]) -> int | None:
    """The iterations that a cache must have room for, where the call says so."""
    depth = options.get("depth")
    return depth if isinstance(depth, int) else None


def _check(
    model: Model,
    params: Params,
    rows: Columns,
    thoughts: int,
    first: int | None,
    cache: Cache | None,
    options: Mapping[str, Any],
) -> None:
    width = rows.tokens.shape[1]
    if thoughts < 0:
        raise ValueError(f"thoughts={thoughts}, the most latent positions of any row, must be at least 0")
    if first is None and cache is not None and thoughts:
        raise ValueError(
            "`cache` requires `first`, for only passes that share a cache fill it: give that column, or leave out the"
            " cache"
        )
    if first is not None and not 1 <= first <= width - thoughts:
        raise ValueError(
            f"first={first} and thoughts={thoughts} in rows of {width} columns: the first thought needs a column before"
            " it, and the last one a column of its own"
        )
    if thoughts and options.get("routes") is not None:
        raise ValueError("`routes` are of one pass over whole rows, and thoughts take several; leave one of them out")
    if first is not None and options.get("state") is not None:
        raise ValueError("`state` is of whole rows, and with `first` no pass is over whole rows: leave one of them out")
    if first is not None and set(options.get("patches") or {}) - {THOUGHTS}:
        raise ValueError("patches are of whole rows, and with `first` no pass is over whole rows: leave `first` out")
    if "taps" in params and thoughts:
        # A tap lists the rows that one pass used; a second pass would add row numbers to row numbers.
        raise ValueError("thoughts need several passes, and taps allow one: train PEER's tables by dense gradients")
    check_pass(model.config, *rows[:3])
    latent = known(rows.latent)
    if latent is not None:
        _check_mask(latent.astype(bool), thoughts, first)


def _check_mask(latent: np.ndarray, thoughts: int, first: int | None) -> None:
    most = int(latent.sum(1).max(initial=0))
    if most > thoughts:
        raise ValueError(f"a row has {most} latent positions, but thoughts={thoughts}; give at least {most}")
    if latent[:, :1].any():
        raise ValueError("column 0 is latent, and no state comes before it; begin rows with a token")
    columns = np.flatnonzero(latent.any(0))
    if first is not None and columns.size and not first <= columns[0] <= columns[-1] < first + thoughts:
        raise ValueError(
            f"latent columns {columns[0]}..{columns[-1]} do not lie in {first}..{first + thoughts - 1}; pad rows on the"
            " left so that first latents share a column, or leave `first` out"
        )


def mean_cosine(thoughts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cosines of all pairs of a row's thoughts [B, n, D], NaN where a row has fewer: their sum, and how many.

    Thoughts that became alike hold one step, not several: the published sign of a collapse (2509.20317, section 3).
    """
    there = ~jnp.isnan(thoughts).any(-1)
    units = jnp.where(there[..., None], thoughts, 0).astype(jnp.float32)
    units = units / jnp.maximum(jnp.linalg.norm(units, axis=-1, keepdims=True), 1e-12)
    pairs = jnp.triu(there[:, :, None] & there[:, None], 1)
    return (jnp.einsum("bnd,bmd->bnm", units, units) * pairs).sum(), pairs.sum().astype(jnp.float32)


def mapped(map_states: Callable[[jax.Array], jax.Array]) -> Feedback:
    """Feeds back a function of the state, [..., D] -> [..., D]."""
    return lambda states, number: Fed(map_states(states))


def init_projector(model: Model, key: jax.Array, width: int | None = None) -> Params:
    """Parameters of `project` with a layer of `width` (None: d_model); put them into the tree as `projector`."""
    d, dtype = model.config.d_model, jnp.dtype(model.config.param_dtype)
    width = d if width is None else width
    up, down = jax.random.split(key)
    return {
        "up": jax.random.normal(up, (d, width), dtype) * d**-0.5,
        "up_bias": jnp.zeros((width,), dtype),
        "down": jax.random.normal(down, (width, d), dtype) * width**-0.5,
        "down_bias": jnp.zeros((d,), dtype),
        "scale": jnp.ones((d,), dtype),
        "bias": jnp.zeros((d,), dtype),
    }


def project(weights: Params, hidden: jax.Array) -> jax.Array:
    """CODI's feedback (2502.21074, section 3): a layer norm of a two-layer map of the state [..., D]."""
    x = jax.nn.gelu(hidden @ weights["up"].astype(hidden.dtype) + weights["up_bias"].astype(hidden.dtype))
    x = (x @ weights["down"].astype(x.dtype) + weights["down_bias"].astype(x.dtype)).astype(jnp.float32)
    x = jax.nn.standardize(x, epsilon=1e-5) * weights["scale"] + weights["bias"]
    return x.astype(hidden.dtype)
