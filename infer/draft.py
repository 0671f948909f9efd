"""Guesses of the tokens to come, for speculative decoding: by multi-token prediction, or by thinking less.

A model with a module of multi-token prediction guesses one token with it. A recurrent model can guess several with few
iterations of its core; the pass that checks them runs all iterations and overwrites what the guesses left in the cache
(2502.05171, section 6.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from infer.sampling import at_least
from model.block import RUNNING_STATE
from model.cache import Cache
from model.lm import Model, Params


@dataclass(frozen=True)
class Draft:
    """Speculative decoding: `length` guesses at a time (0: 3) by `depth` iterations of a recurrent core, or (`depth` 0)
    one by the module of multi-token prediction.

    The samples are those of plain decoding. Raises ValueError for numbers out of range.
    """

    length: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        at_least("draft depth", self.depth, 0)
        at_least("draft length", self.length, 0)
        object.__setattr__(self, "length", self.length or (3 if self.depth else 1))
        if self.length > 1 and not self.depth:
            raise ValueError(f"multi-token prediction drafts 1 token at a time, found draft length {self.length}")


def check_draft(model: Model, draft: Draft | None) -> None:
    """Raises ValueError where the model cannot draft so."""
    if draft is None:
        return
    if draft.depth and model.config.depth != "recurrent":
        raise ValueError(f"draft depth={draft.depth} requires a recurrent model; this one is a plain stack")
    if not draft.depth and not model.config.mtp.depth:
        raise ValueError("Draft() guesses by multi-token prediction; this model has mtp.depth=0")
    running = set(model.config.per_layer("mixer")) & set(RUNNING_STATE)
    if running:
        raise ValueError(
            f"drafts take wrong guesses back, which the running state of mixer {sorted(running)[0]!r} cannot"
        )


@flax.struct.dataclass
class DraftState:
    """What the drafting module remembers: its own `cache`, and of an accepted guess the state before it, `hidden`
    [B, D], its `token` [B] and whether there is one, `pending` [B]: the module sees that pair only now.
    """

    cache: Cache
    hidden: jax.Array
    token: jax.Array
    pending: jax.Array


def empty_draft(model: Model, how: Draft | None, rows: int, length: int) -> DraftState | None:
    """What a module remembers at first; None where none drafts."""
    if how is None or how.depth:
        return None
    hidden = jnp.zeros((rows, model.config.d_model), model.config.dtype)
    return DraftState(model.init_draft_cache(rows, length), hidden, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool))


def prefill_draft(
    model: Model,
    how: Draft | None,
    params: Params,
    hidden: jax.Array,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
) -> Cache | None:
    """The drafting module's cache: it pairs each state with the token after it, which the last one still lacks."""
    if how is None or how.depth:
        return None
    following = jnp.roll(tokens, -1, 1)
    cache = model.init_draft_cache(*tokens.shape)
    return model.ahead(params, 0, hidden, following, positions, mask.at[:, -1].set(0), cache).cache


class Drawn(NamedTuple):
    """What the guesses follow: `tokens` [B] just drawn from `hidden` [B, D], which stand at `position` [B] in the rows
    that are `live` [B], and are to be fed from cache column `column` on.
    """

    hidden: jax.Array
    tokens: jax.Array
    position: jax.Array
    live: jax.Array
    column: jax.Array


def guess(
    model: Model, how: Draft, params: Params, draft: DraftState | None, cache: Cache, drawn: Drawn
) -> tuple[jax.Array, DraftState | None, Cache]:
    """What may follow the tokens drawn: (guesses [B, length], the drafting module's state, the cache)."""
    if draft is None:
        guesses, cache = _by_few_iterations(model, how, params, cache, drawn)
        return guesses, None, cache
    guesses, draft = _by_module(model, params, draft, drawn)
    return guesses[:, None], draft, cache


def _by_few_iterations(model: Model, how: Draft, params: Params, cache: Cache, drawn: Drawn) -> tuple[jax.Array, Cache]:
    """Plain greedy decoding at a small depth, in the columns that the check will write anew."""
    tokens, found, segments = drawn.tokens, [], drawn.live[:, None].astype(jnp.int32)
    for g in range(how.length):
        here = replace(cache, index=drawn.column + g)
        out = model.apply(params, tokens[:, None], drawn.position[:, None] + g, segments, here, how.depth)
        assert out.cache is not None
        tokens, cache = jnp.argmax(model.logits(params, out.hidden[:, 0]), -1).astype(jnp.int32), out.cache
        found.append(tokens)
    return jnp.stack(found, 1), cache


def _by_module(model: Model, params: Params, draft: DraftState, drawn: Drawn) -> tuple[jax.Array, DraftState]:
    """The likeliest token after those drawn; the module is fed the pair it missed when its last guess was accepted,
    and the new one.
    """
    out = model.ahead(
        params,
        0,
        jnp.stack([draft.hidden, drawn.hidden], 1),
        jnp.stack([draft.token, drawn.tokens], 1),
        positions=drawn.position[:, None] + jnp.arange(-2, 0),
        segments=jnp.stack([draft.pending & drawn.live, drawn.live], 1).astype(jnp.int32),
        cache=replace(draft.cache, index=drawn.column),
    )
    assert out.cache is not None
    likeliest = jnp.argmax(model.logits(params, out.hidden[:, 1]), -1).astype(jnp.int32)
    return likeliest, replace(draft, cache=out.cache)
