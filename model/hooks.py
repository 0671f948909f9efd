"""Hook points: named arrays inside a pass that `Model.apply` captures or replaces.

A module calls `hook_point(self, name, x)` where such an array is made. Nothing is kept, and nothing is compiled, unless
a pass asks for the name: captured arrays leave a layer in its reports, replacements enter it as variables, "patches".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from settings.setting import unknown

INTERMEDIATES, PATCHES = "intermediates", "patches"  # Flax collections; `init` leaves the first one out by itself
Layers = dict[int, jax.Array]  # by the number of the layer
Captured = dict[str, Any]  # name -> Layers, or the array of a name that belongs to no layer
# More attention weights than this are refused, for they would hold what attention in blocks never holds.
MOST_WEIGHTS = 2**26


class HookPoint(NamedTuple):
    """Where in a layer an array is made (paths below the block), what it is, and the axis of its columns."""

    homes: tuple[tuple[str, ...], ...]
    meaning: str
    columns: int = 1


BLOCK, MIXER, FFN, SHARED = (), ("mixer",), ("ffn",), ("ffn", "shared")
LAYER_POINTS: dict[str, HookPoint] = {
    "residual.pre": HookPoint((BLOCK,), "the residual stream before the mixer [B, S, D]"),
    "mixer.out": HookPoint((BLOCK,), "what any mixer adds, before a norm behind it [B, S, D]"),
    "attention.out": HookPoint((MIXER,), "the same of gqa and mla alone [B, S, D]"),
    "attention.weights": HookPoint((MIXER,), "softmax weights of gqa and mla [B, H, S, L]; attention='einsum' only", 2),
    "rnn.state": HookPoint((MIXER,), "hidden states of mingru and minlstm [B, S, E]"),
    "residual.mid": HookPoint((BLOCK,), "the residual stream between mixer and feed-forward [B, S, D]"),
    "ffn.hidden": HookPoint((FFN, SHARED), "activations of a dense feed-forward, or of shared experts [B, S, F]"),
    "router.scores": HookPoint((FFN,), "scores of all experts before the choice [B, S, E]"),
    "peer.indices": HookPoint((FFN,), "experts that PEER's newest bank retrieved [B, S, heads, k]; capture only"),
    "ffn.out": HookPoint((BLOCK,), "what the feed-forward adds, before a norm behind it [B, S, D]"),
    "residual": HookPoint((BLOCK,), "the residual stream after the layer [B, S, D]"),
}
MODEL_POINTS: dict[str, str] = {
    "embedding": "the input of the first layer [B, S, D]",
    "state": "the state of a recurrent core after each iteration, before readout=loop's norm [iterations, B, S, D]",
    "final_norm": "the output, `hidden` [B, S, D]",
}
UNPATCHABLE = ("peer.indices",)


@flax.struct.dataclass
class Hooks:
    """What one pass captures and replaces: names, `patches` by name (NaN leaves an element alone), and, inside a
    recurrent core, the `iteration` (or [B], one of each row) of `iterations`.
    """

    capture: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    patches: dict[str, Any] = flax.struct.field(default_factory=dict)
    iteration: jax.Array | int | None = None
    iterations: int = flax.struct.field(pytree_node=False, default=0)


def make_hooks(capture: Sequence[str], patches: Mapping[str, Any] | None, core: Sequence[int]) -> Hooks | None:
    """The hooks of a pass, or None for no names at all; `core` are the layers of a recurrent core.

    Raises ValueError for names that no model has, and for patches of arrays that cannot be replaced.
    """
    if isinstance(capture, str):
        raise ValueError(f"capture takes names in a sequence, found the string {capture!r}: write ({capture!r},)")
    known, replaced = {**LAYER_POINTS, **MODEL_POINTS}, dict(patches or {})
    for name in (*capture, *replaced):
        if name == "thoughts":
            raise ValueError("thoughts are captured by model.latent.think, whose passes make them")
        if name not in known:
            raise ValueError(unknown("hook point", name, known))
    if "state" in (*capture, *replaced) and not core:
        raise ValueError("state requires depth='recurrent'; this model is a plain stack: ask for residual")
    for name in replaced:
        if name in UNPATCHABLE:
            raise ValueError(f"{name} can be captured, not replaced")
        if name in LAYER_POINTS and not isinstance(replaced[name], Mapping):
            raise ValueError(f"patches of {name!r} must name their layers: {{{name!r}: {{layer: array}}}}")
    if not capture and not replaced:
        return None
    if "state" in replaced:  # which is the residual stream after the core's last layer
        replaced["residual"] = {**replaced.get("residual", {}), core[-1]: replaced.pop("state")}
    return Hooks(tuple(dict.fromkeys(capture)), replaced)


def hook_point(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """x, or what the pass puts in its place; kept under `name` where a pass captures."""
    if module.has_variable(PATCHES, name):
        x = patched(x, module.get_variable(PATCHES, name), name)
    module.sow(INTERMEDIATES, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x


def patched(x: jax.Array, patch: Any, name: str) -> jax.Array:
    """x where `patch`, which broadcasts to its shape, is NaN, and the patch elsewhere; raises ValueError for others."""
    patch = jnp.asarray(patch)
    try:
        fits = jnp.broadcast_shapes(patch.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"the patch of {name} has the shape {patch.shape}, the array {x.shape}")
    return jnp.where(jnp.isnan(patch), x, patch.astype(x.dtype))


def asks(hooks: Hooks | None, name: str) -> bool:
    """Whether a pass captures or replaces `name` in any layer."""
    return hooks is not None and (name in hooks.capture or replaces(hooks, name))


def replaces(hooks: Hooks | None, name: str) -> bool:
    """Whether a pass replaces `name` in any layer."""
    return hooks is not None and name in hooks.patches


def model_point(hooks: Hooks | None, name: str, x: jax.Array) -> jax.Array:
    """x, or what the pass puts in its place, of an array that belongs to no layer."""
    return patched(x, hooks.patches[name], name) if hooks is not None and name in hooks.patches else x


def layer_patches(hooks: Hooks, layer: int) -> dict[str, Any]:
    """The patches of one layer as a Flax collection, in a recurrent core those of its iteration."""
    tree: dict[tuple[str, ...], jax.Array] = {}
    for name, by_layer in hooks.patches.items():
        if name in LAYER_POINTS and layer in by_layer:
            patch = _of_iteration(jnp.asarray(by_layer[layer]), hooks, name)
            tree |= {(*home, name): patch for home in LAYER_POINTS[name].homes}
    return unflatten_dict(tree)


def layer_captures(hooks: Hooks, kept: Mapping[str, Any], layer: int) -> dict[str, jax.Array]:
    """What a layer leaves of the asked names, from what Flax has kept; [iterations, ...] inside a recurrent core.

    Raises ValueError for a patch of an array that the layer does not make.
    """
    arrays = {path[-1]: leaf for path, leaf in flatten_dict(dict(kept)).items()}
    for name, by_layer in hooks.patches.items():
        if name in LAYER_POINTS and layer in by_layer and name not in arrays:
            made = sorted(name for name in arrays if name not in UNPATCHABLE)
            raise ValueError(f"layer {layer} makes no {name} that can be replaced; it makes {', '.join(made)}")
    wanted = (*hooks.capture, *(["residual"] if "state" in hooks.capture else []))
    return {name: _placed(arrays[name], hooks) for name in dict.fromkeys(wanted) if name in arrays}


def _rows(hooks: Hooks, ndim: int) -> jax.Array:
    """Which of all iterations this one is, [iterations, B or 1, 1, ...] bool for arrays of `ndim` axes."""
    iteration = jnp.atleast_1d(jnp.asarray(hooks.iteration))
    same = jnp.arange(hooks.iterations)[:, None] == iteration
    return same.reshape(*same.shape, *(1,) * (ndim - 1))


def _placed(x: jax.Array, hooks: Hooks) -> jax.Array:
    """x at its iteration and zeros at the others, so that the sum over iterations holds them all."""
    if hooks.iteration is None:
        return x
    return jnp.where(_rows(hooks, x.ndim), x, jnp.zeros_like(x))


def _of_iteration(patch: jax.Array, hooks: Hooks, name: str) -> jax.Array:
    """The patch of this iteration, all NaN where there is none."""
    if hooks.iteration is None:
        return patch
    if patch.ndim < 2 or patch.shape[0] != hooks.iterations:
        raise ValueError(
            f"the patch of {name} in a recurrent core needs one array per iteration, [{hooks.iterations}, B, ...],"
            f" found the shape {patch.shape}"
        )
    here = _rows(hooks, patch.ndim - 1)
    return jnp.where(here.any(0), jnp.where(here, patch, 0).sum(0), jnp.nan)


def without_unreached(captured: dict[str, jax.Array], depth: jax.Array) -> dict[str, jax.Array]:
    """Arrays [iterations, B, ...] with NaN (-1 where they are integers) beyond the `depth` [B] of each row."""

    def mask(x: jax.Array) -> jax.Array:
        reached = jnp.arange(x.shape[0])[:, None] < depth
        blank = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else -1
        return jnp.where(reached.reshape(*reached.shape, *(1,) * (x.ndim - 2)), x, jnp.asarray(blank, x.dtype))

    return {name: mask(x) for name, x in captured.items()}


def check_layers(hooks: Hooks, layers: int) -> None:
    """Raises ValueError for patches of layers that a model of so many layers has not."""
    for name, by_layer in hooks.patches.items():
        for layer in by_layer if name in LAYER_POINTS else ():
            if layer not in range(layers):
                raise ValueError(f"a patch of {name} in layer {layer!r}; this model has layers 0 to {layers - 1}")


def gather(
    hooks: Hooks | None, by_layer: Iterable[tuple[int, dict[str, jax.Array]]], core: Sequence[int], **whole: jax.Array
) -> Captured:
    """Everything captured by name: {layer: array}, or an array for names of the model.

    Raises ValueError for a name that no layer of this model has.
    """
    captured: Captured = {}
    if hooks is None:
        return captured
    layers = dict(by_layer)
    for name in hooks.capture:
        if name in whole:
            captured[name] = whole[name]
        elif name == "state":
            captured[name] = layers[core[-1]]["residual"]
        else:
            captured[name] = {i: arrays[name] for i, arrays in layers.items() if name in arrays}
        if isinstance(captured[name], dict) and not captured[name]:
            raise ValueError(f"no layer of this model has {name} ({LAYER_POINTS[name].meaning})")
    return captured


def join_columns(parts: Sequence[Captured], core: Sequence[int]) -> Captured:
    """What passes over consecutive columns of the same rows captured, as that of one pass."""

    def join(name: str, layer: int | None, arrays: Sequence[jax.Array]) -> jax.Array:
        axis = LAYER_POINTS[name].columns if name in LAYER_POINTS else 1
        return jnp.concatenate(arrays, axis + (name == "state" or layer in core))

    return {
        name: {i: join(name, i, [part[name][i] for part in parts]) for i in value}
        if isinstance(value, dict)
        else join(name, None, [part[name] for part in parts])
        for name, value in parts[0].items()
    }
