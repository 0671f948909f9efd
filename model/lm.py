"""The language model: embed -> depth -> final norm, and the head apart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from model.block import MIXERS, check_slots, rotations
from model.cache import Cache, advance, empty_cache
from model.checks import check_depth, check_grid, check_pass, check_positions, check_replay, check_room, known
from model.config import ModelConfig
from model.context import Context
from model.depth.cached import check_slots_suffice, with_slots
from model.depth.core import Loop, layers_of
from model.depth.draw import draw_depth
from model.depth.exit import Exit, ExitGate
from model.embedding import embed_tokens, head_logits
from model.hooks import Captured, Hooks, check_layers, make_hooks
from model.mtp import MTP, look_ahead
from model.network import LM
from model.norms import norm_of
from model.reports import Reports, stack_layers
from model.rope import Rotation, rotary_tables
from model.sharding import tree_shardings

Params = dict[str, Any]
# Flax collections that ride in the parameters' tree under their own name: what is learnt by rule, not by gradient, and
# the taps through which sparse gradients leave a backward pass (train/sparse_tables.py).
COLLECTIONS = ("state", "taps")


@flax.struct.dataclass
class Output:
    """`hidden` [B, S, D] after the final norm; `cache` as given; `reports` of the layers; `state`
    [B, S, D], that in which a recurrent core ended; `routes` [B, S, layers with experts, k], the experts taken in a
    stack where tokens choose them; `captured` what the pass was asked for (model/hooks.py): {layer: array} by name,
    with an axis of iterations in front in a recurrent core, or an array for names that belong to no layer; `choices`
    what thoughts were chosen by (model/latent.py).
    """

    hidden: jax.Array
    cache: Cache | None
    reports: Reports
    state: jax.Array | None = None
    routes: jax.Array | None = None
    captured: Captured = flax.struct.field(default_factory=dict)
    choices: Any = None

    @property
    def aux(self) -> dict[str, jax.Array]:
        """The reports as named scalars and small arrays: `load` [L, E], `balance_loss` [L], `depth` [B], ..."""
        return self.reports.named()


def variables_of(params: Params, module: str = "") -> dict[str, Params]:
    """The flax variables of the whole model, or of one top-level module of it, from the one tree of parameters."""
    own = {name: params[name] for name in COLLECTIONS if name in params}
    weights = {name: value for name, value in params.items() if name not in COLLECTIONS}
    whole = {"params": weights, **own}
    return {name: tree[module] for name, tree in whole.items() if module in tree} if module else whole


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as `init` and `apply`: no state of its own, hashable, safe to close over in `jax.jit`."""

    config: ModelConfig

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, a nested dict; may be jitted or `eval_shape`d."""
        return nn.unbox(self._boxed(key))

    def axes(self) -> Params:
        """The logical axis names of every parameter, a tree of tuples like that of `init`."""
        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree.map(lambda leaf: tuple(leaf.names), _declared(self), is_leaf=is_box)

    def abstract(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return nn.unbox(_declared(self))

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
        train: bool = False,
        state: jax.Array | None = None,
        exit: Exit | None = None,
        routes: jax.Array | None = None,
        capture: Sequence[str] = (),
        patches: Mapping[str, Any] | None = None,
    ) -> Output:
        """The forward pass: tokens [B, S] -> Output with hidden [B, S, D].

        `positions` default to 0.. in each segment (continuing the cache when there is one); `segments` 0 is
        padding; `embeds` [B, S, D] replaces the token embedding except where it is NaN; `train`
        makes a batch norm use the statistics of this batch instead of the running ones.

        For recurrent models: `depth` iterations, an int or [B] (None: `recurrent.mean`, or, when `train` with a `key`,
        drawn by `recurrent.draw`); `key` for states that start at random (None: the same noise in every call); `state`
        [B, S, D] to start from, except where it is NaN; `exit` ends a row of a cached pass early. `aux["depth"]` [B]
        tells the iterations run. A plain stack raises for any of them but the key.

        `routes` as an output has them: routers take these experts instead of their own choice.

        `capture` names arrays inside the pass (LAYER_POINTS, MODEL_POINTS of model/hooks.py), which `out.captured` then
        holds; `patches`, of the form of `out.captured`, replaces such arrays except where a patch is NaN.

        Raises ValueError for arrays of other shapes and, where values are known (outside `jit`), for ids, positions,
        depths and columns of a cache that do not exist; under `jit` those are taken for the nearest that does.
        """
        check_pass(self.config, tokens, positions, segments, embeds, state)
        loop = self._loop(tokens.shape[0], depth, key, train, state, exit, cache)
        segments = one_segment(tokens) if segments is None else jnp.asarray(segments, jnp.int32)
        self._check_lengths(tokens.shape, positions, cache)
        if positions is None:
            positions = _default_positions(segments, cache)
            if self.config.positions == "learned":
                check_positions(self.config, positions)
        context, cache = self._context(jnp.asarray(positions, jnp.int32), segments, cache)
        if routes is not None:
            check_replay(self.config, tokens.shape, routes.shape)
            context = dataclasses.replace(context, routes=routes)
        iterations = loop.depth if loop and depth is None else depth
        context = dataclasses.replace(context, hooks=self._hooks(capture, patches, iterations))
        states = (None,) * self.config.n_layers if cache is None else cache.layers
        lm = LM(self.config, train)
        passed = lm.apply(variables_of(params), tokens, context, states, embeds, loop)
        reports, taken = _without_routes(passed.reports)
        written = _written(cache, passed.states, tokens.shape[1])
        return Output(passed.hidden, written, reports, passed.state, taken, passed.captured)

    def _loop(
        self,
        rows: int,
        depth: Any,
        key: jax.Array | None,
        train: bool,
        state: jax.Array | None,
        exit: Exit | None,
        cache: Cache | None,
    ) -> Loop | None:
        """How the core of a recurrent model runs in one pass; None for a plain stack."""
        c = self.config
        if c.depth != "recurrent":
            for name, value in (("depth", depth), ("state", state), ("exit", exit)):
                if value is not None:
                    raise ValueError(
                        f"{name}={value} requires depth='recurrent'; this model is a plain stack of {c.n_layers} layers"
                    )
            return None
        if exit is not None and exit.criterion == "gate" and not c.recurrent.exit_gate:
            raise ValueError("exit='gate' requires recurrent.exit_gate=True: train the model with it")
        if exit is not None and cache is None:
            raise ValueError("exit requires a cache: give a cache, or leave exit out and choose a depth")
        noise, draws = (None, None) if key is None else jax.random.split(key)
        if depth is None:
            drawn = draws if train and c.recurrent.draw != "fixed" else None
            depth = c.recurrent.mean if drawn is None else draw_depth(c.recurrent, drawn, rows)
        depth = check_depth(depth, rows)
        if cache is not None:
            check_slots_suffice(c, cache.layers, depth)
        return Loop(depth, noise, state, exit and exit.of(c.recurrent))

    def _hooks(self, capture: Sequence[str], patches: Mapping[str, Any] | None, depth: Any) -> Hooks | None:
        """What one pass captures and replaces; raises ValueError for what this model, or a depth not yet known, has
        not.
        """
        hooks = make_hooks(capture, patches, layers_of(self.config)[1] if depth is not None else ())
        if hooks is None:
            return None
        check_layers(hooks, self.config.n_layers)
        if depth is None:
            return hooks
        depth = known(depth)
        if depth is None:
            raise ValueError("capture and patches in a recurrent model require a depth known outside jit: give an int")
        return dataclasses.replace(hooks, iterations=int(depth.max()))

    def ahead(
        self,
        params: Params,
        module: int,
        hidden: jax.Array,
        following: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """One multi-token prediction module: from the states below and the tokens `module` + 1 columns further.

        hidden [B, S, D] is the output of the stack (or of module - 1), `following` [B, S] int32; `model.logits` of
        the result at column i predicts token i + module + 2.
        """
        check_pass(self.config, following, positions, segments)
        context, cache = self._context(positions, segments, cache)
        embedded = embed_tokens(self.config, params, following)
        mtp, state = MTP(self.config, train), None if cache is None else cache.layers[0]
        weights = variables_of(params, f"mtp_{module}")
        hidden, state, reports = mtp.apply(weights, hidden, embedded, context, state)
        stacked, _ = _without_routes(stack_layers([reports]))
        return Output(hidden, _written(cache, (state,), following.shape[1]), stacked)

    def predict_ahead(
        self,
        params: Params,
        hidden: jax.Array,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> list[Output]:
        """Every module's output for a whole batch, given the stack's `hidden` [B, S, D] for `tokens` [B, S].

        Column i of output k (from 0) predicts token i + k + 2; columns whose token i + k + 1 lies outside their own
        segment are padding.
        """
        check_grid(tokens, "tokens")
        segments = one_segment(tokens) if segments is None else segments
        positions = _default_positions(segments, None) if positions is None else positions
        outputs = []
        for k in range(self.config.mtp.depth):
            following, inside = look_ahead(tokens, segments, k + 1)
            outputs.append(self.ahead(params, k, hidden, following, positions, inside, train=train))
            hidden = outputs[-1].hidden
        return outputs

    def head(self, params: Params) -> jax.Array:
        """The output embedding [V, D], the input embedding when tied; ValueError for a model of scores."""
        if self.config.score.size:
            raise ValueError(
                f"this model gives {self.config.score.size} score(s) of a text (model.score.size) and predicts no"
                " tokens: sample from, or train on tokens, a language model"
            )
        return params["embed"] if self.config.tied else params["head"]

    def exit_logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [B, S, D] of an iteration -> logits [B, S] of stopping there, by the learnt gate."""
        return ExitGate(self.config).apply({"params": params["exit_gate"]}, hidden)

    def normed(self, params: Params, x: jax.Array) -> jax.Array:
        """x [..., D] after the final norm."""
        return norm_of(self.config).apply({"params": params["final_norm"]}, x)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> logits [..., V], fp32."""
        return head_logits(self.config, self.head(params), hidden)

    def scores(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> scores [..., n], fp32; ValueError for a language model."""
        c = self.config
        if not c.score.size:
            raise ValueError("this is a language model, which has no scores: train one with model.score.size >= 1")
        weights = params["score"].astype(c.dtype)
        scores = jnp.einsum("...d,nd->...n", hidden, weights, preferred_element_type=jnp.float32)
        return scores + params["score_bias"].astype(jnp.float32) if c.score.bias else scores

    def init_cache(self, batch: int, length: int, dtype: Any = None, depth: int | None = None) -> Cache:
        """An empty cache of `length` columns for `batch` rows; dtype defaults to the compute dtype.

        A recurrent core keeps `recurrent.kv_slots` iterations, or (0) all of up to `depth` (None: `recurrent.mean`).

        Raises ValueError for expert-choice routing, which must see the whole batch at once.
        """
        if self.config.moe.router == "expert_choice" and "moe" in self.config.per_layer("ffn"):
            raise ValueError(
                'moe.router="expert_choice" lets experts choose among all tokens, later ones too: such a model cannot'
                ' generate. Train with router="top_k", or measure its loss (eval.examples=0, eval.loss_batches=...)'
            )
        cache = self._empty(self.config.per_layer("mixer"), batch, length, dtype)
        if self.config.depth != "recurrent":
            return cache
        slots = min(filter(None, (depth or self.config.recurrent.mean, self.config.recurrent.kv_slots)))
        core = layers_of(self.config)[1]
        layers = (with_slots(state, slots) if i in core else state for i, state in enumerate(cache.layers))
        return dataclasses.replace(cache, layers=tuple(layers))

    def init_draft_cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """The like for one multi-token prediction module, as `ahead` takes it."""
        return self._empty(self.config.per_layer("mixer")[-1:], batch, length, dtype)

    def _empty(self, mixers: Sequence[str], batch: int, length: int, dtype: Any) -> Cache:
        dtype = jnp.dtype(dtype or self.config.dtype)
        return empty_cache(
            tuple(MIXERS[name].state(self.config, batch, length, dtype) for name in mixers), batch, length
        )

    def _boxed(self, key: jax.Array) -> Params:
        c, blank = self.config, jnp.zeros((1, 1), jnp.int32)
        context, _ = self._context(blank, blank, None)
        modules = [("", LM(c).init(key, blank, context, (None,) * c.n_layers, None))]
        x = jnp.zeros((1, 1, c.d_model), c.dtype)
        for k in range(c.mtp.depth):
            modules.append((f"mtp_{k}", MTP(c).init(jax.random.fold_in(key, k), x, x, context, None)))
        params: Params = {}
        for name, variables in modules:
            for collection, tree in variables.items():
                home = params if collection == "params" else params.setdefault(collection, {})
                home.update({name: tree} if name else tree)
        return params

    def _context(self, positions: jax.Array, segments: jax.Array, cache: Cache | None) -> tuple[Context, Cache | None]:
        """What the layers share, and the cache with this pass's columns marked."""
        index = None if cache is None else cache.index
        if cache is not None:
            cache = advance(cache, positions, segments)
        keys = (positions, segments) if cache is None else (cache.positions, cache.segments)
        return Context(positions, segments, *keys, self._rope(positions), index), cache

    def _check_lengths(self, shape: tuple[int, ...], positions: jax.Array | None, cache: Cache | None) -> None:
        c, (rows, length) = self.config, shape
        if c.positions == "learned" and positions is None and length > c.max_length:
            raise ValueError(f"{length} tokens, but only max_length={c.max_length} learned positions")
        if cache is None:
            return
        if len(cache.positions) != rows:
            raise ValueError(f"{rows} rows of tokens were given a cache of {len(cache.positions)} rows")
        check_room(length, cache.index, cache.positions.shape[1])

    def _rope(self, positions: jax.Array) -> dict[Rotation, tuple[jax.Array, jax.Array]]:
        c = self.config
        return {turn: rotary_tables(c.rope, turn, c.max_length, positions) for turn in rotations(c)}


@functools.lru_cache(maxsize=8)
def _declared(model: Model) -> Params:
    """Shapes and logical axes of all parameters: tracing a large model takes seconds, and many ask."""
    return jax.eval_shape(model._boxed, jax.random.key(0))


def build(config: ModelConfig | Mapping[str, Any]) -> Model:
    """A model from a ModelConfig, a ConfigDict or a dict; unknown keys and slots raise with the nearest one."""
    if not isinstance(config, ModelConfig):
        config = ModelConfig.from_dict(config)
    check_slots(config)
    return Model(config)


def parameter_count(params: Params) -> int:
    """The number of parameters in a tree of arrays or shape structs; what is learnt by rule does not count."""
    weights = {name: value for name, value in params.items() if name not in COLLECTIONS}
    return sum(leaf.size for leaf in jax.tree.leaves(weights))


def _without_routes(reports: Reports) -> tuple[Reports, jax.Array | None]:
    """The reports of a stack without the experts taken, and those apart: [layers, B, S, k] -> [B, S, layers, k]."""
    taken = reports.routes
    return dataclasses.replace(reports, routes=None), None if taken is None else jnp.moveaxis(taken, 0, 2)


def _written(cache: Cache | None, layers: tuple[Any, ...], columns: int) -> Cache | None:
    """The cache after a pass of `columns` columns, the layers' new state inside."""
    return None if cache is None else dataclasses.replace(cache, layers=layers, index=cache.index + columns)


def one_segment(tokens: jax.Array) -> jax.Array:
    """The segments of rows without padding, [B, S]."""
    # Behind a barrier, without which XLA would work out at compile time, for seconds and more where rows are long, all
    # that follows from them: positions, rotations, masks, beginnings of segments.
    return jax.lax.optimization_barrier(jnp.ones(tokens.shape, jnp.int32))


def _default_positions(segments: jax.Array, cache: Cache | None) -> jax.Array:
    """0.. in each run of one segment, after whatever the cache already holds of that segment."""
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    first = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1)
    positions = columns - jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
    if cache is None:
        return positions
    same = (segments[:, :, None] == cache.segments[:, None, :]) & (segments[:, :, None] > 0)
    return positions + jnp.where(same, cache.positions[:, None, :] + 1, 0).max(-1)
