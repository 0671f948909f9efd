"""Rows that continue prompts: every prompt is read once, however many rows continue it, and learns from all of them.

`prefill` runs the prompts into a cache, `continue_from` continues them: one without the other is half of a forward
pass over rows [prompt | completion], and both together give its states and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from model.cache import Cache
from model.latent import think
from model.lm import Model, Output, Params
from model.sharding import replicate, whole_rows

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotations that change with the longest position of a pass


@flax.struct.dataclass
class Prefix:
    """P prompts that have been read: what gradients flow through, and what they do not.

    `layers` every layer's cache of Lp columns; `hidden` [P, D] of the last token; `aux` the sums that layers reported;
    `columns` the positions and segments of the cache; `lengths` [P].
    """

    layers: Any
    hidden: jax.Array
    aux: dict[str, jax.Array]
    columns: Cache
    lengths: jax.Array

    def share(self, parts: int) -> Prefix:
        """The prefix for one of `parts` passes that together report what it reports once."""
        return replace(self, aux=jax.tree.map(lambda x: x / parts, self.aux))


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


def prefill(model: Model, params: Params, prompts: Mapping[str, jax.Array], *, after: int = 1) -> Prefix:
    """Reads prompts, left-padded: `tokens`, `segments` [P, Lp], and where they end in thoughts and `after` tokens more,
    `latent` [P, n]; `routes` [P, Lp, layers, k] are experts to take.
    """
    tokens, segments = prompts["tokens"], prompts["segments"]
    (rows, width), thoughts = tokens.shape, prompts["latent"].shape[1] if "latent" in prompts else 0
    first = width - after - thoughts
    latent = jnp.zeros(tokens.shape, bool)
    if thoughts:
        latent = latent.at[:, first : first + thoughts].set(prompts["latent"])
    batch = {"tokens": tokens, "positions": jnp.maximum(segments.cumsum(1) - 1, 0), "segments": segments}
    options: dict[str, Any] = {"routes": prompts["routes"]} if "routes" in prompts else {}
    cache = model.init_cache(rows, width)
    start = first if thoughts else None
    out = think(model, params, {**batch, "latent": latent}, thoughts=thoughts, first=start, cache=cache, **options)
    assert out.cache is not None
    columns = replace(out.cache, layers=())
    return Prefix(out.cache.layers, out.hidden[:, -1], out.aux, columns, segments.sum(1))


def continue_from(model: Model, params: Params, prefix: Prefix, rows: Mapping[str, jax.Array]) -> Output:
    """Continues prompt `prompt_of` [N] by `tokens` [N, T] where `mask` [N, T]: `hidden` [N, T, D] predicts each of
    them, so that of token 0 is the prompt's last state, and a row's last token is not read. `aux` covers prompts, too.
    """
    chosen, (count, length) = rows["prompt_of"], rows["tokens"].shape
    columns, width = prefix.columns, prefix.columns.positions.shape[1]
    room = model.init_cache(count, width + length - 1)

    def seat(read: jax.Array, empty: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(empty, replicate(read)[chosen].astype(empty.dtype), (0,) * empty.ndim)

    marks = {name: seat(getattr(columns, name), getattr(room, name)) for name in ("positions", "segments")}
    cache = replace(room, layers=jax.tree.map(seat, prefix.layers, room.layers), index=jnp.int32(width), **marks)
    # A token is read for the one after it: the last of a row, wherever it stands, is not.
    fed, wanted = rows["tokens"][:, :-1], rows["mask"][:, 1:]
    positions = prefix.lengths[chosen][:, None] + jnp.arange(length - 1)
    options: dict[str, Any] = {"routes": rows["routes"][:, :-1]} if "routes" in rows else {}
    out = model.apply(params, fed, positions, (wanted > 0).astype(jnp.int32), cache, **options)
    hidden = jnp.concatenate([whole_rows(prefix.hidden)[chosen][:, None], out.hidden], 1)
    return Output(hidden, None, jax.tree.map(jnp.add, prefix.aux, out.aux))
