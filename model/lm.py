"""The language model: embed -> depth -> final norm, and the head apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attention import Context, attention_mask
from model.block import MIXERS, Block, check_slots
from model.cache import Cache, advance, empty_cache
from model.config import ModelConfig
from model.norms import Norm
from model.rope import rope_tables
from model.sharding import constrain, tree_shardings

Params = dict[str, Any]


@flax.struct.dataclass
class Output:
    """`hidden` [B, S, D] after the final norm; `cache` as given; `aux` named scalars and small arrays."""

    hidden: jax.Array
    cache: Cache | None
    aux: dict[str, jax.Array]


class LM(nn.Module):
    """Declares the embeddings, the stack, the final norm and the head."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, context: Context, states: tuple[Any, ...], embeds: jax.Array | None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """tokens [B, S], one state (or None) per layer -> (hidden [B, S, D], new states)."""
        c = self.config
        x = self._embed(tokens, context, embeds)
        masks = {window: attention_mask(context, window) for window in dict.fromkeys(c.per_layer("window"))}
        block = nn.remat(Block) if c.remat else Block
        new = []
        for i, state in enumerate(states):
            x, state = block(c, i, name=f"layer_{i}")(x, context, masks[c.per_layer("window")[i]], state)
            new.append(state)
        if not c.tied:
            self._table("head", c.vocab_size, "vocab", c.init_std)
        return Norm(c.norm_type, c.norm_eps, "norm", c.param_dtype, name="final_norm")(x), tuple(new)

    def _table(self, name: str, rows: int, axis: str, std: float) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(std), (axis, "embed"))
        return self.param(name, init, (rows, self.config.d_model), jnp.dtype(self.config.param_dtype))

    def _embed(self, tokens: jax.Array, context: Context, embeds: jax.Array | None) -> jax.Array:
        c = self.config
        x = _look_up(self._table("embed", c.vocab_size, "vocab", c.init_std), "vocab", tokens)
        x = x.astype(c.dtype) * jnp.asarray(c.embed_scale, c.dtype)
        if embeds is not None:
            x = jnp.where(jnp.isnan(embeds), x, embeds.astype(c.dtype))
        if c.positions == "learned":
            table = self._table("position_embed", c.max_length, "learned_positions", c.init_std)
            x = x + _look_up(table, "learned_positions", context.positions).astype(c.dtype)
        return constrain(x, "batch", "length", "act_embed")


def _look_up(table: jax.Array, rows: str, indices: jax.Array) -> jax.Array:
    """Rows of a table [rows, D] -> [B, S, D], split over the batch like any other activation."""
    # Whole rows first: out of a table split by columns the result would come split by columns too, and XLA
    # can only turn that round by gathering the global batch on every device.
    return jnp.take(constrain(table, rows, "act_embed"), indices, axis=0, mode="clip")


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as `init` and `apply`: no state of its own, hashable, safe to close over in `jax.jit`."""

    config: ModelConfig

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, a nested dict; may be jitted or `eval_shape`d."""
        return nn.unbox(self._boxed(key))

    def axes(self) -> Params:
        """The logical axis names of every parameter, a tree of tuples like that of `init`."""
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))
        return jax.tree.map(
            lambda leaf: tuple(leaf.names),
            boxed,
            is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
        )

    def abstract(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def shardings(self, mesh: jax.sharding.Mesh) -> Params:
        """The sharding of every parameter on `mesh`; raises where a size cannot be split evenly."""
        return tree_shardings(mesh, self.axes(), self.abstract())

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Cache | None = None,
        depth: Any = None,
        embeds: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """The forward pass: tokens [B, S] -> Output with hidden [B, S, D].

        `positions` default to 0.. in each segment (continuing the cache when there is one); `segments` 0 is
        padding; `embeds` [B, S, D] replaces the token embedding except where it is NaN; `depth` belongs to
        recurrent models and raises here; `key` is for models that draw noise and is unused by a plain stack.
        """
        if depth is not None:
            layers = self.config.n_layers
            raise ValueError(f"depth={depth} was given to a plain stack of {layers} layers, which has none to choose")
        del key
        segments = jnp.ones(tokens.shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
        self._check_lengths(tokens.shape[1], positions, cache)
        if positions is None:
            positions = _default_positions(segments, cache)
        positions = positions.astype(jnp.int32)
        index = None if cache is None else cache.index
        if cache is not None:
            cache = advance(cache, positions, segments)
        keys = (positions, segments) if cache is None else (cache.positions, cache.segments)
        context = Context(positions, segments, *keys, self._rope(positions), index)
        states = (None,) * self.config.n_layers if cache is None else cache.layers
        hidden, states = LM(self.config).apply({"params": params}, tokens, context, states, embeds)
        if cache is not None:
            cache = dataclasses.replace(cache, layers=states, index=cache.index + tokens.shape[1])
        return Output(hidden, cache, {})

    def head(self, params: Params) -> jax.Array:
        """The output embedding [V, D], the input embedding when tied."""
        return params["embed"] if self.config.tied else params["head"]

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> logits [..., V], fp32."""
        weights = self.head(params).astype(self.config.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)
        return logits * self.config.logit_scale

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """An empty cache of `length` columns for `batch` rows; dtype defaults to the compute dtype."""
        dtype = jnp.dtype(dtype or self.config.dtype)
        names = self.config.per_layer("mixer")
        layers = tuple(MIXERS[name].state(self.config, batch, length, dtype) for name in names)
        return empty_cache(layers, batch, length)

    def _boxed(self, key: jax.Array) -> Params:
        blank = jnp.zeros((1, 1), jnp.int32)
        context = Context(blank, blank, blank, blank, self._rope(blank), None)
        return LM(self.config).init(key, blank, context, (None,) * self.config.n_layers, None)["params"]

    def _check_lengths(self, length: int, positions: jax.Array | None, cache: Cache | None) -> None:
        # A gather past the end of a table and a write past the end of a cache would both be clamped without a
        # word.
        c = self.config
        if c.positions == "learned" and positions is None and length > c.max_length:
            raise ValueError(f"{length} tokens, but only max_length={c.max_length} learned positions")
        if cache is not None and length > cache.positions.shape[1]:
            raise ValueError(f"{length} tokens do not fit a cache of {cache.positions.shape[1]} columns")

    def _rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        c = self.config
        return rope_tables(c.rope, c.head_dim, c.max_length, positions) if c.positions == "rope" else None


def build(config: ModelConfig | Mapping[str, Any]) -> Model:
    """A model from a ModelConfig, a ConfigDict or a dict; unknown keys and slots raise with the nearest one."""
    if not isinstance(config, ModelConfig):
        config = ModelConfig.from_dict(config)
    check_slots(config)
    return Model(config)


def parameter_count(params: Params) -> int:
    """The number of parameters in a tree of arrays or shape structs."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _default_positions(segments: jax.Array, cache: Cache | None) -> jax.Array:
    """0.. in each run of one segment, after whatever the cache already holds of that segment."""
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    first = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1)
    positions = columns - jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    if cache is None:
        return positions
    same = (segments[:, :, None] == cache.segments[:, None, :]) & (segments[:, :, None] > 0)
    return positions + jnp.where(same, cache.positions[:, None, :] + 1, 0).max(-1)
