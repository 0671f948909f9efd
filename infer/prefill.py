"""The first half of the compiled sampler: the pass over the prompts."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from infer.budget import Forcing
from infer.continuation import Prefixes
from infer.draft import prefill_draft
from infer.feedback import Choice, feedback_of
from infer.plan import Plan
from model.cache import Cache
from model.latent import THOUGHTS, Columns, mean_cosine, think
from model.lm import Model, Output, Params
from model.sharding import batch_parts, split_rows

PREFILL_TOKENS = 8192  # of one device at a time


@flax.struct.dataclass
class Prompts:
    """What the prefill leaves for the seats: `cache` with P rows of Lp columns, `hidden` [P, D] of the last token, the
    drafting module's cache, of a recurrent model its `RecurrentOutput`, with `budget` [P] where depths vary, `routes`
    [P, Lp, layers, k] where choices of experts are kept, `choices` [P, thoughts, K] of soft thoughts, `cosine` [P] the
    mean of the cosines between a row's thoughts, of a continuation what samples start from, `prefixes`, and `forcing`
    of a thinking budget.
    """

    cache: Cache
    hidden: jax.Array
    lengths: jax.Array
    draft: Cache | None
    recurrent: RecurrentOutput | None
    budget: jax.Array | None
    routes: jax.Array | None = None
    choices: Choice | None = None
    cosine: jax.Array | None = None
    prefixes: Prefixes | None = None
    forcing: Forcing | None = None


@flax.struct.dataclass
class RecurrentOutput:
    """Of the last token fed in each row, the iterations it took, `depth` [B], and where they ended, `state` [B, D]."""

    depth: jax.Array
    state: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    model: Model,
    plan: Plan,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    budget: jax.Array | None,
    seeds: jax.Array | None = None,
) -> Prompts:
    """Runs the prompts through the model, a few at a time: attention scores grow with the square of their length."""
    budget = budget if plan.recurrence and plan.recurrence.varied else None

    def some(rows: tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]) -> tuple[Any, ...]:
        tokens, mask, budget, seeds = rows
        positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
        cache = new_cache(model, plan, len(tokens), plan.prompt_length)
        # Prompts end in their thoughts and a marker, and padding on the left puts those of all rows in one place.
        thoughts, columns = plan.thoughts.count, jnp.arange(plan.prompt_length)
        first = plan.prompt_length - plan.thoughts.after - thoughts
        latent = jnp.broadcast_to((columns >= first) & (columns < first + thoughts), tokens.shape)
        feedback = feedback_of(model, params, plan.thoughts.soft, plan.thoughts.noise, seeds)
        options = recurrence_arguments(plan, budget) | {
            "feedback": feedback,
            "capture": (THOUGHTS,) if thoughts else (),
        }
        read = Columns(tokens, positions, mask, latent)
        out = think(model, params, read, thoughts=thoughts, first=first, cache=cache, **options)
        draft = prefill_draft(model, plan.draft, params, out.hidden, tokens, positions, mask)
        return (
            _per_row(out.cache, len(tokens)),
            out.hidden[:, -1],
            _per_row(draft, len(tokens)),
            recurrent_output(plan, model, params, out, -1),
            out.routes.astype(jnp.int16) if plan.routes and out.routes is not None else None,
            None if plan.thoughts.noise.quiet else out.choices,
            jax.vmap(_cosine)(out.captured[THOUGHTS]) if thoughts > 1 else None,
        )

    blocks, block = _blocks(*tokens.shape)
    given = (tokens, mask, budget, seeds)
    if (blocks, block) == (1, len(tokens)):
        found = some(given)
    else:
        rows = jnp.minimum(jnp.arange(blocks * block), len(tokens) - 1).reshape(blocks, block)
        found = jax.tree.map(
            lambda x: x.reshape(blocks * block, *x.shape[2:])[: len(tokens)],
            jax.lax.map(lambda r: some(jax.tree.map(lambda x: x[r], given)), rows),
        )
    cache, hidden, draft, recurrent, *kept = found
    zero = jnp.zeros((), jnp.int32)
    draft = None if draft is None else replace(draft, index=zero)
    return split_rows(Prompts(replace(cache, index=zero), hidden, mask.sum(1), draft, recurrent, budget, *kept))


def _cosine(thoughts: jax.Array) -> jax.Array:
    """The mean over the pairs of a row's thoughts [n, D]."""
    total, pairs = mean_cosine(thoughts[None])
    return total / pairs


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
    unnormed = model.config.recurrent.readout != "loop"
    state = model.normed(params, state) if plan.recurrence.warm == "normed" and unnormed else state
    return RecurrentOutput(out.aux["depth"], state)


def _per_row(cache: Cache | None, rows: int) -> Cache | None:
    """The cache with an index for every row, so that blocks of rows can be joined."""
    return None if cache is None else replace(cache, index=jnp.zeros((rows,), jnp.int32))
