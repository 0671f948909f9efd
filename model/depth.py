"""Recurrent depth (2502.05171): prelude -> the core again and again, from a state of its own -> coda.

A pass of the core is a function step(weights, e, s, context, states) -> (s, states, reports) of the prelude's output e
and the state s, [B, S, D] each. Two loops call it. `unrolled` serves training and full passes: iterations without
gradient, as many as asked for at run time, then a fixed number with it, each rematerialised, so that neither the
number of compilations nor the memory grows with the depth. `cached` serves decoding: the keys and values of every
iteration have a slot of their own in the cache, and rows may leave early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attention import Context
from model.config import ModelConfig
from model.exit import CRITERIA, Exit
from model.initial import cut_normal, weights
from model.linear import linear
from settings.model_parts import RecurrentConfig

Reports = tuple[dict[str, jax.Array], ...]  # one dict per layer of the core
Step = Callable[[Any, jax.Array, jax.Array, Context, Any], tuple[jax.Array, Any, Reports]]
Depth = int | jax.Array  # of all rows, or [B]
# Looks at a state: (final hidden [B, S, D], logits [B, V] of the last column, the coda's states).
Look = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array, Any]]


class Loop(NamedTuple):
    """How the core runs in one pass: how deep, from which state [B, S, D] (NaN, or None: its own), and until when."""

    depth: Depth
    key: jax.Array | None = None
    state: jax.Array | None = None
    exit: Exit | None = None


@flax.struct.dataclass
class Recurred:
    """What a loop leaves: the state [B, S, D], the core's cache, its reports, the iterations of every row [B], and
    (sum, count) of ||s_i - s_{i-1}|| / ||s_i|| over the tokens at the last iteration.
    """

    state: jax.Array
    states: Any
    reports: Reports
    depth: jax.Array
    change: jax.Array


def draw_depth(config: RecurrentConfig, key: jax.Array, rows: int) -> jax.Array:
    """The number of iterations of a training pass, at least 1: int32, () or [rows] (section 3.3)."""
    rate_key, count_key = jax.random.split(key)
    shape = (rows,) if config.per_sequence else ()
    if config.draw == "fixed":
        return jnp.full(shape, config.mean, jnp.int32)
    if config.draw == "poisson":
        return 1 + jax.random.poisson(count_key, config.mean - 1.0, shape)
    noise = jax.random.normal(rate_key, shape) * config.sigma
    return 1 + jax.random.poisson(count_key, config.mean * jnp.exp(noise - config.sigma**2 / 2))


def first_state(config: ModelConfig, e: jax.Array, positions: jax.Array, key: jax.Array | None) -> jax.Array:
    """s_0 [B, S, D]: zeros, the prelude's output, or noise of the deviation of embeddings.

    The noise belongs to a position (and, with a `key`, to a row): it is the same in a full pass and in decoding, and
    without a key in every call, so that a rollout and the update that learns from it see the same states.
    """
    if config.recurrent.start == "zero":
        return jnp.zeros_like(e)
    if config.recurrent.start == "embedding":
        return e

    def row(number: jax.Array, positions: jax.Array) -> jax.Array:
        base = jax.random.key(0) if key is None else jax.random.fold_in(key, number)
        return jax.vmap(lambda p: cut_normal(jax.random.fold_in(base, p), e.shape[-1:]))(positions)

    noise = jax.vmap(row)(jnp.arange(e.shape[0]), positions)
    return (noise * (config.init_std * config.embed_scale)).astype(e.dtype)


class Injection(nn.Module):
    """The map of state s and input e, [B, S, D] each, that begins an iteration."""

    config: ModelConfig

    @nn.compact
    def __call__(self, s: jax.Array, e: jax.Array) -> jax.Array:
        """(s, e) -> what the first layer of the core sees [B, S, D]."""
        kind, c = self.config.recurrent.injection, self.config
        if kind in ("none", "add"):
            return s if kind == "none" else s + e
        if kind == "diagonal":
            # Parcae (2604.12946): decay in (0, 1) channel by channel, so that the state cannot explode.
            step = jax.nn.softplus(self._vector("step", 0.0))
            decay = jnp.exp(-step * jnp.exp(self._vector("decay", 0.0)))
            driven = linear(e, self._kernel(c.d_model), ("mlp", "embed"), c.precision)
            return (decay * s + step * driven).astype(e.dtype)
        mixed = linear(jnp.concatenate([s, e], -1), self._kernel(2 * c.d_model), ("mlp", "embed"), c.precision)
        if kind == "concat":
            return mixed
        gate = jax.nn.sigmoid(mixed)
        return gate * s + (1 - gate) * e

    def _kernel(self, rows: int) -> jax.Array:
        init = nn.with_logical_partitioning(weights(self.config), ("mlp", "embed"))
        return self.param("kernel", init, (rows, self.config.d_model), jnp.dtype(self.config.param_dtype))

    def _vector(self, name: str, value: float) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.constant(value), ("norm",))
        return self.param(name, init, (self.config.d_model,), jnp.float32)


class ExitGate(nn.Module):
    """The chance to stop after an iteration, from its final hidden state (Ouro, 2510.25741, section 3)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """hidden [B, S, D] -> logits [B, S], fp32."""
        kernel = nn.with_logical_partitioning(weights(self.config), ("norm",))
        bias = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        w = self.param("kernel", kernel, (self.config.d_model,), jnp.float32)
        return hidden.astype(jnp.float32) @ w + self.param("bias", bias, (1,), jnp.float32)[0]


def unrolled(
    step: Step, variables: Any, e: jax.Array, s: jax.Array, context: Context, depth: Depth, grad_steps: int
) -> Recurred:
    """Runs the core `depth` times; the last `grad_steps` iterations of each row carry gradient.

    Rows of different depth end together: the shallower ones start later, and all their last iterations lie inside.
    """
    fixed = isinstance(depth, int)
    longest = depth if isinstance(depth, int) else depth.max()
    steps = min(grad_steps, depth) if isinstance(depth, int) else grad_steps
    skipped = longest - steps if fixed else jnp.maximum(longest - steps, 0)
    by_row = None if fixed or jnp.ndim(depth) == 0 else longest - depth
    shapes = jax.eval_shape(lambda: step(variables, e, s, context, None)[2])
    blank = (s, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), jnp.zeros((2,)))

    def once(variables: Any, e: jax.Array, carry: Any, i: jax.Array | int, losses: bool) -> Any:
        s, reports, _ = carry
        active = None if by_row is None else jnp.asarray(i) >= by_row
        here = context if active is None else _idle(context, active)
        new, _, found = step(variables, e, s, here, None)
        new = new if active is None else jnp.where(active[:, None, None], new, s)
        return new, _added(reports, found, losses), change(new, s, here.segments)

    carry = blank
    if not fixed or skipped:
        still = jax.lax.stop_gradient((variables, e))
        body = lambda i, carry: once(*still, carry, i, losses=False)  # noqa: E731
        carry = jax.lax.fori_loop(0, skipped, body, jax.lax.stop_gradient(blank))

    @jax.checkpoint
    def learning(variables: Any, e: jax.Array, carry: Any, i: jax.Array) -> Any:
        if fixed:
            return once(variables, e, carry, i, losses=True)
        return jax.lax.cond(i < longest, lambda c: once(variables, e, c, i, losses=True), lambda c: c, carry)

    carry, _ = jax.lax.scan(
        lambda carry, j: (learning(variables, e, carry, skipped + j), None), carry, jnp.arange(steps)
    )
    s, reports, moved = carry
    counted = _mean_losses(reports, jnp.clip(longest, 1, max(steps, 1)))
    return Recurred(s, None, counted, jnp.broadcast_to(jnp.asarray(depth), s.shape[:1]), moved)


def cached(
    step: Step,
    variables: Any,
    e: jax.Array,
    s: jax.Array,
    context: Context,
    states: Any,
    loop: Loop,
    look: Look,
    coda: Any,
) -> tuple[Recurred, jax.Array, Any]:
    """Runs the core on new columns of a cache, each row until its depth or its exit: (what is left, hidden, coda).

    `states` of the core's layers are [B, slots, ...]: iteration i reads and writes slot i mod slots.
    """
    depth, exit_ = jnp.broadcast_to(jnp.asarray(loop.depth), s.shape[:1]), loop.exit
    slots = jax.tree.leaves(states)[0].shape[1]
    even = exit_ is None and jnp.ndim(loop.depth) == 0
    shapes = jax.eval_shape(lambda: step(variables, e, s, context, _slot(states, jnp.int32(0)))[2])
    reports = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    criterion = None if exit_ is None else CRITERIA[exit_.criterion]
    seen = jax.eval_shape(look, s, coda)
    hidden, logits = (jnp.zeros(x.shape, x.dtype) for x in seen[:2])
    memory = criterion.start(s, logits) if criterion else ()

    def once(carry: Any) -> Any:
        i, s, states, coda, hidden, reports, _, used, live, memory = carry
        here = context if even else _idle(context, live)
        new, written, found = step(variables, e, s, here, _slot(states, i % slots))
        states = _put(states, written, i % slots, None if even else live)
        new = new if even else jnp.where(live[:, None, None], new, s)
        used = used + live
        live = live & (used < depth)
        moved = change(new, s, here.segments)
        if criterion:
            hidden, logits, coda = look(new, coda)
            memory, leaves = criterion.look(memory, new, logits, context.segments > 0, exit_.limit)  # type: ignore[union-attr]
            live = live & ~leaves
        return i + 1, new, states, coda, hidden, _added(reports, found, True), moved, used, live, memory

    used, live = jnp.zeros(s.shape[:1], jnp.int32), jnp.ones(s.shape[:1], bool)
    start = (jnp.int32(0), s, states, coda, hidden, reports, jnp.zeros((2,)), used, live, memory)
    found = jax.lax.while_loop(lambda carry: carry[8].any(), once, start)
    i, s, states, coda, hidden, reports, moved, used, _, _ = found
    if not criterion:
        hidden, _, coda = look(s, coda)
    left = Recurred(s, states, _mean_losses(reports, jnp.maximum(i, 1)), used, moved)
    return left, hidden, coda


def change(new: jax.Array, old: jax.Array, segments: jax.Array) -> jax.Array:
    """(sum, count) over the real tokens of ||new - old|| / ||new||: [2] fp32."""
    wide = jax.lax.stop_gradient((new.astype(jnp.float32), old.astype(jnp.float32)))
    ratio = jnp.linalg.norm(wide[0] - wide[1], axis=-1) / jnp.maximum(jnp.linalg.norm(wide[0], axis=-1), 1e-30)
    real = segments > 0
    return jnp.stack([(ratio * real).sum(), real.sum().astype(jnp.float32)])


def correlation(s: jax.Array, segments: jax.Array) -> jax.Array:
    """(sum, count) over the rows of the mean cosine between the states of two tokens: 1 is collapse. [2] fp32."""
    wide, real = jax.lax.stop_gradient(s.astype(jnp.float32)), (segments > 0)[..., None]
    unit = wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-30) * real
    count = real.sum((1, 2))
    pairs = count * (count - 1)
    cosines = ((unit.sum(1) ** 2).sum(-1) - (unit**2).sum((1, 2))) / jnp.maximum(pairs, 1)
    several = pairs > 0
    return jnp.stack([(cosines * several).sum(), several.sum().astype(jnp.float32)])


def fill_deeper(states: Any, used: jax.Array, index: jax.Array, columns: int) -> Any:
    """Copies each row's new keys and values of its last iteration, `used` [B], into the slots it did not reach.

    A later token that goes deeper then finds the deepest entry there is ("latest-m4" of section 6.1) without a search.
    Leaves are [B, slots, K, L, D].
    """

    def fill(leaf: jax.Array) -> jax.Array:
        new = jax.lax.dynamic_slice_in_dim(leaf, index, columns, 3)
        last = jnp.minimum(jnp.arange(leaf.shape[1]), used[:, None] - 1)
        return jax.lax.dynamic_update_slice_in_dim(
            leaf, jnp.take_along_axis(new, last[:, :, None, None, None], 1), index, 3
        )

    return jax.tree.map(fill, states)


def _idle(context: Context, active: jax.Array) -> Context:
    """The context in which the rows that are not active hold padding, so that nothing counts them."""
    return context.replace(segments=jnp.where(active[:, None], context.segments, 0))  # type: ignore[attr-defined]


def _added(total: Reports, found: Reports, losses: bool) -> Reports:
    """Reports added name by name; terms of the objective only where they carry gradient."""
    keep = lambda name: losses or not name.startswith("loss/")  # noqa: E731
    return tuple(
        {name: value + one[name] if keep(name) else value for name, value in layer.items()}
        for layer, one in zip(total, found, strict=True)
    )


def _mean_losses(reports: Reports, iterations: jax.Array | int) -> Reports:
    """Loads stay sums over iterations; terms of the objective become means, and weigh what they do in a stack."""
    share = lambda name, value: value / iterations if name.startswith("loss/") else value  # noqa: E731
    return tuple({name: share(name, value) for name, value in layer.items()} for layer in reports)


def _slot(states: Any, slot: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, slot, 1, keepdims=False), states)


def _put(states: Any, new: Any, slot: jax.Array, live: jax.Array | None) -> Any:
    """Writes a slot, for the live rows alone."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        if live is not None:
            before = jax.lax.dynamic_index_in_dim(old, slot, 1, keepdims=False)
            new = jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, before)
        return jax.lax.dynamic_update_index_in_dim(old, new, slot, 1)

    return jax.tree.map(put, states, new)


def with_slots(state: Any, slots: int) -> Any:
    """An empty layer state [B, ...] once for every slot: [B, slots, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x[:, None], slots, 1), state)


def as_sums(found: Recurred, segments: jax.Array) -> dict[str, jax.Array]:
    """What a pass reports of its recurrence: (sum, count) pairs, and `depth` [B]."""
    depth = jnp.stack([found.depth.sum(), jnp.asarray(found.depth.size)]).astype(jnp.float32)
    return {
        "depth": found.depth,
        "recurrent_depth": depth,
        "recurrent_change": found.change,
        "recurrent_correlation": correlation(found.state, segments),
    }


def layers_of(config: ModelConfig) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The numbers of the layers of prelude, core and coda."""
    r, n = config.recurrent, config.n_layers
    return range(r.prelude), range(r.prelude, n - r.coda), range(n - r.coda, n)


def check_slots_suffice(config: ModelConfig, layers: Sequence[Any], depth: Depth) -> None:
    """Raises ValueError where a cache has fewer slots than iterations, and sharing them was not asked for."""
    slots = jax.tree.leaves(layers[config.recurrent.prelude])[0].shape[1]
    if isinstance(depth, int) and depth > slots and not config.recurrent.kv_slots:
        raise ValueError(
            f"depth={depth}, but the cache holds keys of {slots} iterations: make it with init_cache(..., depth=...),"
            " or let iterations share slots (recurrent.kv_slots)"
        )
