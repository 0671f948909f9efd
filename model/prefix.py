"""Rows that continue prompts: every prompt is read once, however many rows continue it, and learns from all of them.

`prefill` runs the prompts into a cache, `continue_from` continues them: one without the other is half of a forward
pass over rows [prompt | completion], and both together give its states and gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from model.cache import Cache
from model.latent import Columns, Feedback, think
from model.lm import Model, Output, Params
from model.reports import Reports
from model.sharding import replicate, whole_rows

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotations that change with the longest position of a pass


class Prompts(flax.struct.PyTreeNode, kw_only=True):
    """P prompts, left-padded: `tokens`, `segments` [P, Lp] int32, segment 0 is padding.

    Where they end in thoughts, `latent` [P, n] bool tells which of the columns `first` .. `first` + n - 1 are;
    `routes` [P, Lp, layers, k] are experts to take.
    """

    tokens: Any
    segments: Any
    latent: Any = None
    routes: Any = None
    first: int = flax.struct.field(default=0, pytree_node=False)


@flax.struct.dataclass
class Prefix:
    """P prompts that have been read: what gradients flow through, and what they do not.

    `layers` every layer's cache of Lp columns; `hidden` [P, D] of the last token; `reports` those of the layers;
    `columns` the positions and segments of the cache; `lengths` [P].
    """

    layers: Any
    hidden: jax.Array
    reports: Reports
    columns: Cache
    lengths: jax.Array

    def share(self, parts: int) -> Prefix:
        """The prefix for one of `parts` passes that together report what it reports once."""
        return replace(self, reports=jax.tree.map(lambda x: x / parts, self.reports))


def can_share(model: Model) -> bool:
    """Whether a gradient flows through the model's cache, and a pass over a part of a row sees what it would see of it.

    The loop of a recurrent core over a cache has no gradient; experts that choose tokens choose among whole rows; some
    rotations depend on the longest position of a pass; and a loss of the layers' own is a mean over whole rows.
    """
    c = model.config
    chosen = "moe" in c.per_layer("ffn") and c.moe.router == "expert_choice"
    turning = c.positions == "rope" and c.rope.kind in LENGTH_DEPENDENT
    return c.depth == "stack" and not chosen and not turning and not layer_terms(model)


def layer_terms(model: Model) -> bool:
    """Whether layers add terms of their own to every objective: the balance of experts, the size of router logits."""
    moe = model.config.moe
    return "moe" in model.config.per_layer("ffn") and bool(moe.loss_weight or moe.z_weight)


def prefill(model: Model, params: Params, prompts: Prompts, feedback: Feedback | None = None) -> Prefix:
    """Reads prompts into a cache; `feedback`: what their thoughts read (model/latent.py)."""
    tokens, segments = prompts.tokens, prompts.segments
    (rows, width), thoughts = tokens.shape, 0 if prompts.latent is None else prompts.latent.shape[1]
    latent = jnp.zeros(tokens.shape, bool)
    if thoughts:
        latent = latent.at[:, prompts.first : prompts.first + thoughts].set(prompts.latent)
    columns = Columns(tokens, jnp.maximum(segments.cumsum(1) - 1, 0), segments, latent)
    options: dict[str, Any] = {} if prompts.routes is None else {"routes": prompts.routes}
    cache, first = model.init_cache(rows, width), prompts.first if thoughts else None
    options["feedback"] = feedback
    out = think(model, params, columns, thoughts=thoughts, first=first, cache=cache, **options)
    assert out.cache is not None
    columns_read = replace(out.cache, layers=())
    return Prefix(out.cache.layers, out.hidden[:, -1], out.reports, columns_read, segments.sum(1))


def continue_from(
    model: Model,
    params: Params,
    prefix: Prefix,
    tokens: jax.Array,
    present: jax.Array,
    prompt_of: jax.Array,
    routes: jax.Array | None = None,
) -> Output:
    """Continues prompt `prompt_of` [N] by `tokens` [N, T] where `present` [N, T]: `hidden` [N, T, D] predicts each of
    them, so that of token 0 is the prompt's last state, and a row's last token is not read. Reports cover prompts, too.
    """
    count, length = tokens.shape
    columns, width = prefix.columns, prefix.columns.positions.shape[1]
    room = model.init_cache(count, width + length - 1)

    def seat(read: jax.Array, empty: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(empty, replicate(read)[prompt_of].astype(empty.dtype), (0,) * empty.ndim)

    marks = {name: seat(getattr(columns, name), getattr(room, name)) for name in ("positions", "segments")}
    cache = replace(room, layers=jax.tree.map(seat, prefix.layers, room.layers), index=jnp.int32(width), **marks)
    # A token is read for the one after it: the last of a row, wherever it stands, is not.
    fed, read = tokens[:, :-1], present[:, 1:]
    positions = prefix.lengths[prompt_of][:, None] + jnp.arange(length - 1)
    options: dict[str, Any] = {} if routes is None else {"routes": routes[:, :-1]}
    out = model.apply(params, fed, positions, read.astype(jnp.int32), cache, **options)
    hidden = jnp.concatenate([whole_rows(prefix.hidden)[prompt_of][:, None], out.hidden], 1)
    return Output(hidden, None, jax.tree.map(jnp.add, prefix.reports, out.reports))
