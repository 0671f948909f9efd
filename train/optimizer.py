"""Optimisers and schedules: AdamW, Muon, clipping by the global norm, and which rule a parameter follows."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from settings.optimizer import OptimizerConfig
from settings.setting import from_mapping, unknown

Tree = Any
Names = tuple[str | None, ...]

# Axes that only stack matrices beside one another: each slice is a matrix of its own.
STACKED = ("layers", "expert", "experts", "choices", "gates", "peer_heads", "halves", "conv")
# Axes of look-up tables, whose rows are seen one at a time: no matrix in Muon's sense.
TABLES = ("vocab", "learned_positions", "rows")
HEADS = ("heads", "kv_heads")


def optimizer_config(config: Mapping[str, Any] | None = None, **options: Any) -> OptimizerConfig:
    """The options of a dict or ConfigDict, overridden by keywords; ValueError for an unknown one."""
    given = {**dict((config or {}).items()), **options}
    known = [field.name for field in dataclasses.fields(OptimizerConfig)]
    for key in given:
        if key not in known:
            raise ValueError(unknown("optimizer option", key, known))
    return from_mapping(OptimizerConfig, given)


def make_optimizer(
    config: Mapping[str, Any] | None = None,
    total_steps: int = 1,
    *,
    axes: Tree = None,
    trainable: Sequence[str] = (),
    **options: Any,
) -> optax.GradientTransformation:
    """The gradient transformation of a run of `total_steps`: clipping, then AdamW or Muon with weight decay.

    `config` and `options` hold the fields of `OptimizerConfig`. `axes`, a tree like the parameters' whose
    leaves are tuples of logical axis names, tells matrices from tables and vectors; AdamW falls back on
    shapes and names without it, Muon needs it. `trainable` are patterns of paths, such as "exit_gate/*" (() for all):
    what matches none stays as it is, without moments or decay. Raises ValueError for unknown options, names and values
    out of range.

    Source: AdamW, Loshchilov & Hutter (1711.05101); Muon, Jordan et al. (2024), scaled as in Moonlight
    (2502.16982), section 2.2; embeddings, heads, routers, norms and biases stay with AdamW.
    """
    chosen = optimizer_config(config, **options)
    schedule = make_schedule(chosen, total_steps)
    kinds = kinds_from(axes)
    core = OPTIMIZERS[chosen.name](chosen, schedule, kinds, axes)
    whole = optax.chain(optax.clip_by_global_norm(chosen.clip_norm), core) if chosen.clip_norm else core
    return only(whole, trainable) if trainable else whole


def only(moves: optax.GradientTransformation, trainable: Sequence[str]) -> optax.GradientTransformation:
    """The transformation of the parameters whose path matches one of the patterns; the others stay.

    Raises ValueError at `init` where no parameter does.
    """

    def learns(path: Any, leaf: Any) -> bool:
        return any(fnmatch.fnmatch(keystr(path), pattern) for pattern in trainable)

    def split(params: Tree) -> Tree:
        found = jax.tree_util.tree_map_with_path(learns, params)
        if not any(jax.tree.leaves(found)):
            raise ValueError(f"no parameter matches {', '.join(trainable)}: nothing would learn")
        return found

    return optax.partition({True: moves, False: optax.set_to_zero()}, split)


def make_schedule(config: OptimizerConfig | Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, 0 being the first.

    The rate rises linearly over `warmup_steps`, the first update being taken at lr / warmup_steps, and then
    follows the shape; after `total_steps` it stays. Raises ValueError when the warm-up does not fit into the
    run.

    Not optax's schedules: their values differ from these in the last bits, and a run is a hash.
    """
    chosen = config if isinstance(config, OptimizerConfig) else optimizer_config(config)
    if not 0 <= chosen.warmup_steps <= max(total_steps, 1):
        raise ValueError(
            f"optimizer.warmup_steps = {chosen.warmup_steps} does not fit into {total_steps} steps; a shorter run needs"
            f" a shorter warm-up: --config.optimizer.warmup_steps={total_steps // 10}"
        )
    shape = SCHEDULES[chosen.schedule]

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        ramp = jnp.minimum(1.0, (step + 1.0) / max(chosen.warmup_steps, 1))
        height = shape(jnp.asarray(step, jnp.float32), total_steps, chosen)
        return chosen.lr * ramp * (chosen.final_fraction + (1 - chosen.final_fraction) * height)

    return rate


def fraction_done(step: jax.Array, start: float, end: float) -> jax.Array:
    """How far the step is from start to end, from 0 to 1."""
    return jnp.clip((step - start) / max(end - start, 1), 0, 1)


def constant(step: jax.Array, total: int, config: OptimizerConfig) -> jax.Array:
    """1 at every step."""
    return jnp.ones_like(step)


def linear(step: jax.Array, total: int, config: OptimizerConfig) -> jax.Array:
    """From 1 after the warm-up straight down to 0."""
    return 1 - fraction_done(step, config.warmup_steps, total)


def cosine(step: jax.Array, total: int, config: OptimizerConfig) -> jax.Array:
    """From 1 after the warm-up down to 0 along half a cosine (SGDR, 1608.03983, equation 5)."""
    return (1 + jnp.cos(jnp.pi * fraction_done(step, config.warmup_steps, total))) / 2


def warmup_stable_decay(step: jax.Array, total: int, config: OptimizerConfig) -> jax.Array:
    """1 until the last `decay_fraction` of the run, then straight down to 0 (MiniCPM, 2404.06395)."""
    start = max(config.warmup_steps, total * (1 - config.decay_fraction))
    return 1 - fraction_done(step, start, total)


def adamw(
    config: OptimizerConfig, schedule: optax.Schedule, kinds: Callable[[Tree], Tree], axes: Tree
) -> optax.GradientTransformation:
    """AdamW whose weight decay spares the kinds of parameters in `no_decay`."""

    def decayed(params: Tree) -> Tree:
        return jax.tree.map(lambda kind: kind not in config.no_decay, kinds(params))

    decay = config.weight_decay
    return optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=decay, mask=decayed)


def muon(
    config: OptimizerConfig, schedule: optax.Schedule, kinds: Callable[[Tree], Tree], axes: Tree
) -> optax.GradientTransformation:
    """Muon for the matrices and AdamW for everything else; ValueError without the logical axis names."""
    if axes is None:
        raise ValueError("muon must know what each parameter axis is: pass axes, the tree of logical axis names")
    names = names_by_path(axes)

    def dimension_numbers(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, _: muon_dimensions(names[keystr(path)]), params)

    matrices = optax.contrib.muon(
        schedule,
        beta=config.muon_beta,
        ns_steps=config.muon_steps,
        consistent_rms=config.muon_rms,
        weight_decay=0.0 if "matrix" in config.no_decay else config.weight_decay,
        muon_weight_dimension_numbers=dimension_numbers,
    )
    rest = adamw(config, schedule, kinds, axes)
    return optax.partition({"matrix": matrices, "vector": rest, "embedding": rest}, kinds)


def muon_dimensions(names: Names) -> MuonDimensionNumbers:
    """Which axes of a matrix are its input (reduction) and which its output; stacked axes are neither.

    ("embed", "heads", "head_dim") reads 0 and writes (1, 2); ("heads", "head_dim", "embed") reads (0, 1) and
    writes 2; ("experts", "expert_embed", "mlp") reads 1 and writes 2, once per expert.
    """
    own = [axis for axis, name in enumerate(names) if name not in STACKED]
    split = len(own) - 1 if names[own[-1]] in ("embed", "expert_embed") else 1
    return MuonDimensionNumbers(tuple(own[:split]), tuple(own[split:]))


def kind_of(names: Names) -> str:
    """From logical axis names: matrix, embedding (a table of rows) or vector (a norm, a bias, a router)."""
    own = [name for name in names if name not in STACKED]
    if set(own) & set(TABLES):
        return "embedding"
    if set(own) & set(HEADS):  # heads x head_dim is one side of a matrix, in two axes
        own = [name for name in own if name != "head_dim"]
    return "matrix" if len(own) > 1 else "vector"


def guess_kind(path: str, shape: Sequence[int]) -> str:
    """The kind of a parameter whose axes are not named, from its path and shape."""
    lowered = path.lower()
    if any(word in lowered for word in ("embed", "lm_head")):
        return "embedding"
    named_vector = any(word in lowered for word in ("bias", "scale", "norm"))
    return "vector" if named_vector or len(shape) < 2 else "matrix"


def kinds_from(axes: Tree) -> Callable[[Tree], Tree]:
    """A function from parameters (or a part of them, or their gradients) to a tree of their kinds."""
    names = None if axes is None else names_by_path(axes)

    def kind(path: Any, leaf: jax.Array) -> str:
        if names is None:
            return guess_kind(keystr(path), leaf.shape)
        if keystr(path) not in names:
            raise ValueError(unknown("parameter without axis names", keystr(path), names))
        return kind_of(names[keystr(path)])

    return lambda params: jax.tree_util.tree_map_with_path(kind, params)


def names_by_path(axes: Tree) -> dict[str, Names]:
    """The axis names of every parameter by its path; ValueError for a leaf that is not a tuple."""
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda x: x is None or isinstance(x, tuple))
    for path, leaf in leaves:
        if not isinstance(leaf, tuple):
            raise ValueError(f"axes of {keystr(path)} must be a tuple of logical names, found {leaf!r}")
    return {keystr(path): leaf for path, leaf in leaves}


def keystr(path: Any) -> str:
    """A parameter's path as text, such as layers/0/attention/q."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def ema_update(ema: Tree, params: Tree, decay: float) -> Tree:
    """decay x ema + (1 - decay) x params, leaf by leaf."""
    return optax.incremental_update(params, ema, 1 - decay)


OPTIMIZERS = {"adamw": adamw, "muon": muon}
SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "wsd": warmup_stable_decay}
