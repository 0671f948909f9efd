"""Continuous thoughts: at latent positions a model reads its own state instead of a token (Coconut, 2412.06769).

The input embedding of a latent position is the hidden state, after the final norm, of the position before it. A row of
n latent positions in a chain therefore needs n + 1 forward passes, and gradients flow through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.cache import Cache
from model.checks import check_pass, known
from model.lm import Model, Output, Params
from model.reports import Reports, merge_passes

Feedback = Callable[[jax.Array], jax.Array]


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
    `feedback` maps states [..., D] to embeddings [..., D]; None feeds them back as they are, as the paper does.
    `cache`, an empty one, is filled and returned, for decoding to go on from; thoughts then need `first`.
    `options` go to `model.apply` (depth, key, train). Each of several passes is computed again in the backward pass;
    the cached pass of a recurrent core has none, so leave `first` out to train one.
    The reports count every column once. Raises ValueError for latents outside the columns that are computed, where the
    mask can be seen (outside `jit`), and for parameters that hold taps.
    """
    _check(model, params, rows, thoughts, first, cache, options)
    rows = rows._replace(latent=rows.latent.astype(bool))
    feedback = feedback or (lambda hidden: hidden)
    if not thoughts:
        return model.apply(params, *rows[:3], cache, **options)
    if first is None:
        return _recompute(model, params, rows, thoughts, feedback, options)
    return _reuse(model, params, rows, thoughts, first, feedback, cache, options)


def _pass(model: Model, options: Mapping[str, Any], in_scan: bool = False) -> Callable[..., Output]:
    """One forward pass, (params, columns, embeds or None, cache or None) -> Output, recomputed when differentiated."""

    def run(params: Params, columns: Columns, embeds: jax.Array | None, cache: Cache | None) -> Output:
        return model.apply(params, *columns[:3], cache, embeds=embeds, **options)

    return jax.checkpoint(run, prevent_cse=not in_scan)


def _recompute(
    model: Model, params: Params, rows: Columns, thoughts: int, feedback: Feedback, options: Mapping[str, Any]
) -> Output:
    latent, blank = rows.latent, jnp.asarray(jnp.nan, model.config.dtype)
    rank = jnp.where(latent, latent.cumsum(1), 0)

    def one(embeds: jax.Array, thought: jax.Array) -> tuple[jax.Array, None]:
        states = feedback(_pass(model, options, in_scan=True)(params, rows, embeds, None).hidden)
        before = jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return jnp.where((rank == thought)[..., None], before, embeds).astype(embeds.dtype), None

    embeds = jnp.full((*latent.shape, model.config.d_model), blank)
    embeds, _ = jax.lax.scan(one, embeds, jnp.arange(1, thoughts + 1))
    # The last pass holds every column with its final input: what the others report, it reports again.
    return _pass(model, options)(params, rows, embeds, None)


def _reuse(
    model: Model,
    params: Params,
    rows: Columns,
    thoughts: int,
    first: int,
    feedback: Feedback,
    cache: Cache | None,
    options: Mapping[str, Any],
) -> Output:
    (count, width), blank = rows.tokens.shape, jnp.asarray(jnp.nan, model.config.dtype)
    run, last = _pass(model, options), first + thoughts

    def one(carry: Any, column: Columns) -> tuple[Any, tuple[jax.Array, jax.Array | None, Reports]]:
        # A row without a thought here keeps its token, and is computed with the others.
        embeds = jnp.where(column.latent[..., None], feedback(carry[1]).astype(blank.dtype), blank)
        out = _pass(model, options, in_scan=True)(params, column, embeds, carry[0])
        return (out.cache, out.hidden), (out.hidden[:, 0], None if out.state is None else out.state[:, 0], out.reports)

    start = model.init_cache(count, width, depth=_depth(options)) if cache is None else cache
    before = run(params, rows.between(0, first), None, start)
    by_time = jax.tree.map(lambda x: x.swapaxes(0, 1)[..., None], rows.between(first, last))
    (full, _), (hidden, states, reported) = jax.lax.scan(one, (before.cache, before.hidden[:, -1:]), by_time)
    parts, reports = [(before.hidden, before.state)], [(first, before.reports)]
    parts += [(hidden.swapaxes(0, 1), None if states is None else states.swapaxes(0, 1))]
    reports += [(thoughts, merge_passes([(1, jax.tree.map(lambda x, i=i: x[i], reported)) for i in range(thoughts)]))]
    if last < width:
        rest = run(params, rows.between(last, width), None, full)
        full, parts, reports = rest.cache, [*parts, (rest.hidden, rest.state)], [*reports, (width - last, rest.reports)]
    whole, states = (_joined(list(x)) for x in zip(*parts, strict=True))
    return Output(whole, None if cache is None else full, merge_passes(reports), states)


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
