"""A trained stack made recurrent by layer surgery (2511.07384): its middle layers become a core to be repeated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from model.config import ModelConfig
from model.lm import COLLECTIONS, Model, Params, build

PER_LAYER = ("mixer", "ffn", "window")
Part = int | Sequence[int]


def retrofit(
    model: Model, params: Params, prelude: Part, core: Part, coda: Part, **recurrent: Any
) -> tuple[Model, Params]:
    """The same weights as prelude, core and coda: (model, parameters), which compute what they did at every depth.

    Each part is a number of layers, taken in turn, or their numbers in the stack; layers that no part names are left
    out, and then the outputs change. `recurrent`: other fields of RecurrentConfig (mean, draw, grad_steps,
    injection ...). The state starts at zero and the injection passes the prelude's output on alone ("concat": the half
    of its map that reads the state starts at zero, and learns from there) or adds it ("add"), so one pass is that of
    the stack. Raises ValueError for layers that do not exist and for what has no such start.
    """
    recurrent_model, move = surgery(model, prelude, core, coda, **recurrent)
    return recurrent_model, move(params)


def surgery(
    model: Model, prelude: Part, core: Part, coda: Part, **recurrent: Any
) -> tuple[Model, Callable[[Params], Params]]:
    """The model that `retrofit` gives, and what it does to the parameters."""
    config = model.config
    parts = _parts(config, prelude, core, coda)
    options = {"injection": "concat", "start": "zero", "readout": "none"} | recurrent
    if options["injection"] not in ("concat", "add") or options["start"] != "zero" or options["readout"] != "none":
        raise ValueError(
            'a retrofit computes what the stack did only with injection "concat" or "add", start "zero" and readout'
            f' "none"; found {options["injection"]!r}, {options["start"]!r}, {options["readout"]!r}'
        )
    sizes = dict(zip(("prelude", "core", "coda"), map(len, parts), strict=True))
    order = [layer for part in parts for layer in part]
    slots = {name: tuple(config.per_layer(name)[i] for i in order) for name in PER_LAYER}
    settings = dataclasses.asdict(config) | slots
    settings |= {"n_layers": len(order), "depth": "recurrent", "recurrent": sizes | options, "family": "sagax"}
    return build(settings), functools.partial(_moved, config, order, options["injection"])


def _parts(config: ModelConfig, *asked: Part) -> list[list[int]]:
    """The layers of each part, by number."""
    if config.depth != "stack":
        raise ValueError("retrofit requires depth='stack'; this model is recurrent already")
    parts, taken = [], 0
    for part in asked:
        parts.append(list(range(taken, taken + part)) if isinstance(part, int) else list(part))
        taken += len(parts[-1])
    flat = [layer for part in parts for layer in part]
    numbers = all(isinstance(part, int) for part in asked)
    if numbers and taken != config.n_layers:
        raise ValueError(f"prelude, core and coda of {asked} layers make {taken}, the stack has {config.n_layers}")
    if len(set(flat)) != len(flat) or not set(flat) <= set(range(config.n_layers)):
        raise ValueError(f"layers {flat} must be different ones of 0..{config.n_layers - 1}")
    if not parts[1]:
        raise ValueError("a core needs at least one layer")
    return parts


def _moved(config: ModelConfig, order: Sequence[int], injection: str, params: Params) -> Params:
    """The parameters with layers renumbered and, for "concat", the map that passes its second half on."""

    def renumbered(tree: Params) -> Params:
        rest = {name: value for name, value in tree.items() if not name.startswith("layer_")}
        return rest | {f"layer_{new}": tree[f"layer_{old}"] for new, old in enumerate(order) if f"layer_{old}" in tree}

    moved = renumbered({name: value for name, value in params.items() if name not in COLLECTIONS})
    moved |= {name: renumbered(params[name]) for name in COLLECTIONS if name in params}
    if injection == "concat":
        identity = jnp.eye(config.d_model, dtype=config.param_dtype)
        moved["injection"] = {"kernel": jnp.concatenate([jnp.zeros_like(identity), identity])}
    return moved
