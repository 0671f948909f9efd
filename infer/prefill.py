"""The first half of the compiled sampler: what a run of it is made of, and the pass over the prompts."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from infer.draft import Drafting, prefill_draft
from infer.partial import PartialSamples
from infer.sampling import Sampling
from model.cache import Cache
from model.exit import Exit
from model.latent import think
from model.lm import Model, Output, Params
from model.sharding import batch_parts, split_rows

PREFILL_TOKENS = 8192  # of one device at a time


@dataclass(frozen=True)
class RecurrenceSpec:
    """How a recurrent model decodes: at most `depth` iterations a token (`varied`: as many as its sample has), less
    where `exit` ends them; `warm` starts a token from the state of the one before: "raw", or "normed", or not ("").
    """

    depth: int
    varied: bool = False
    exit: Exit | None = None
    warm: str = ""


@dataclass(frozen=True)
class Plan:
    """Static shapes and rules of one compiled sampler; `shrink`: it ends when only one slot in so many is busy.

    `lanes`: slots, samples and prompts fall into so many equal parts, which have nothing to do with one another. On a
    mesh each device that holds rows of its own is a lane, so that no keys travel when a sample is seated.
    """

    slots: int
    samples: int
    group: int
    prompt_length: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    sampling: Sampling
    draft: Drafting | None = None
    recurrence: RecurrenceSpec | None = None
    thoughts: int = 0
    after: int = 1
    routes: bool = False
    shrink: int = 0
    lanes: int = 1

    @property
    def width(self) -> int:
        """Tokens fed per step, and so columns written."""
        return 1 + self.draft.length if self.draft else 1

    @property
    def ring(self) -> int:
        """Columns that a slot needs at most: every step keeps at least one token."""
        return self.width * self.max_new_tokens


@flax.struct.dataclass
class Prompts:
    """What the prefill leaves for the seats: `cache` with P rows of Lp columns, `hidden` [P, D] of the last token, the
    drafting module's cache, of a recurrent model its `RecurrentOutput`, with `budget` [P] where depths vary, `routes`
    [P, Lp, layers, k] where choices of experts are kept, and what samples have said before, `begun`.
    """

    cache: Cache
    hidden: jax.Array
    lengths: jax.Array
    draft: Cache | None
    recurrent: RecurrentOutput | None
    budget: jax.Array | None
    routes: jax.Array | None = None
    begun: PartialSamples | None = None


@flax.struct.dataclass
class RecurrentOutput:
    """Of the last token fed in each row, the iterations it took, `depth` [B], and where they ended, `state` [B, D]."""

    depth: jax.Array
    state: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    model: Model, plan: Plan, params: Params, tokens: jax.Array, mask: jax.Array, budget: jax.Array | None
) -> Prompts:
    """Runs the prompts through the model, a few at a time: attention scores grow with the square of their length."""
    budget = budget if plan.recurrence and plan.recurrence.varied else None

    def some(rows: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[Any, ...]:
        tokens, mask, budget = rows
        positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
        cache = new_cache(model, plan, len(tokens), plan.prompt_length)
        # Prompts end in their thoughts and a marker, and padding on the left puts those of all rows in one place.
        first, columns = plan.prompt_length - plan.after - plan.thoughts, jnp.arange(plan.prompt_length)
        latent = jnp.broadcast_to((columns >= first) & (columns < first + plan.thoughts), tokens.shape)
        batch = {"tokens": tokens, "positions": positions, "segments": mask, "latent": latent}
        options = recurrence_arguments(plan, budget)
        out = think(model, params, batch, thoughts=plan.thoughts, first=first, cache=cache, **options)
        draft = prefill_draft(model, plan.draft, params, out.hidden, tokens, positions, mask)
        return (
            _per_row(out.cache, len(tokens)),
            out.hidden[:, -1],
            _per_row(draft, len(tokens)),
            recurrent_output(plan, model, params, out, -1),
            out.routes.astype(jnp.int16) if plan.routes and out.routes is not None else None,
        )

    blocks, block = _blocks(*tokens.shape)
    given = (tokens, mask, budget)
    if (blocks, block) == (1, len(tokens)):
        found = some(given)
    else:
        rows = jnp.minimum(jnp.arange(blocks * block), len(tokens) - 1).reshape(blocks, block)
        found = jax.tree.map(
            lambda x: x.reshape(blocks * block, *x.shape[2:])[: len(tokens)],
            jax.lax.map(lambda r: some(jax.tree.map(lambda x: x[r], given)), rows),
        )
    cache, hidden, draft, recurrent, routes = found
    zero = jnp.zeros((), jnp.int32)
    draft = None if draft is None else replace(draft, index=zero)
    return split_rows(Prompts(replace(cache, index=zero), hidden, mask.sum(1), draft, recurrent, budget, routes))


def _blocks(rows: int, length: int) -> tuple[int, int]:
    """(passes, rows of each) that read so many prompts; each device of a mesh reads a few at a time."""
    parts = batch_parts(jax.sharding.get_abstract_mesh())
    blocks = -(-rows // (parts * max(PREFILL_TOKENS // length, 1)))
    return blocks, parts * -(-rows // (parts * blocks))


def new_cache(model: Model, plan: Plan, rows: int, length: int) -> Cache:
    """An empty cache, with room for every iteration of a recurrent core."""
    return model.init_cache(rows, length, depth=plan.recurrence.depth if plan.recurrence else None)


def recurrence_arguments(plan: Plan, budget: jax.Array | None) -> dict[str, Any]:
    """The arguments of `model.apply` that say how a recurrent core runs."""
    if plan.recurrence is None:
        return {}
    return {"depth": plan.recurrence.depth if budget is None else budget, "exit": plan.recurrence.exit}


def recurrent_output(plan: Plan, model: Model, params: Params, out: Output, column: int) -> RecurrentOutput | None:
    """What a pass leaves in one column of a recurrent model; None for a plain stack."""
    if plan.recurrence is None or out.state is None:
        return None
    state = out.state[:, column]
    state = model.normed(params, state) if plan.recurrence.warm == "normed" else state
    return RecurrentOutput(out.aux["depth"], state)


def _per_row(cache: Cache | None, rows: int) -> Cache | None:
    """The cache with an index for every row, so that blocks of rows can be joined."""
    return None if cache is None else replace(cache, index=jnp.zeros((rows,), jnp.int32))
