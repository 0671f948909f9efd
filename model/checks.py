"""What a pass is given: shapes are checked always, values where they are known, that is, outside of traces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig


def known(x: Any) -> np.ndarray | None:
    """The values of an array, or None inside a trace and where other processes have some of them."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return None
    return np.asarray(jax.device_get(x))  # an explicit transfer, which a transfer guard allows


def id_limit(config: ModelConfig) -> int:
    """The first id that a model has no embedding for."""
    size = config.vocab_size
    return size + size * size if config.pairs else size


def check_ids(config: ModelConfig, ids: np.ndarray, what: str, real: np.ndarray | None = None) -> None:
    """Raises ValueError for ids [...] that the model has no embedding for, where they are `real`."""
    at = _outside(ids, id_limit(config), real)
    if at is None:
        return
    known_ids = f"ids 0..{config.vocab_size - 1}" + (f" and pairs up to {id_limit(config) - 1}" if config.pairs else "")
    raise ValueError(
        f"{what}{list(at)} is {ids[at]}, and the model knows {known_ids}: encode texts with the model's own tokenizer,"
        " or build the model with a larger vocab_size"
    )


def check_grid(x: Any, what: str, shape: tuple[int, ...] | None = None, mask: bool = False) -> None:
    """Raises ValueError unless x is an array [B, S] of integers (a `mask`: or bools), of `shape` where it is given."""
    wanted = "of integers, [rows, columns]" if shape is None else f"of integers, {list(shape)} like the tokens"
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"{what} must be an array {wanted}; found {type(x).__name__}: make it one by jnp.asarray")
    kinds = (np.integer, np.bool_) if mask else (np.integer,)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
        raise ValueError(f"{what} must be an array {wanted}; found dtype {x.dtype}")
    if x.ndim != 2 or (shape is not None and tuple(x.shape) != shape):
        row = f"; a single row is {what}[None]" if x.ndim == 1 and shape is None else ""
        raise ValueError(f"{what} must be an array {wanted}; found shape {list(x.shape)}{row}")


def check_pass(
    config: ModelConfig,
    tokens: Any,
    positions: Any = None,
    segments: Any = None,
    embeds: Any = None,
    state: Any = None,
) -> None:
    """Raises ValueError for the inputs of a pass that are not what `Model.apply` says, padding's values excepted."""
    check_grid(tokens, "tokens")
    shape = tuple(tokens.shape)
    if 0 in shape:
        raise ValueError(f"tokens must have a row and a column at least; found shape {list(shape)}")
    for what, x in (("positions", positions), ("segments", segments)):
        if x is not None:
            check_grid(x, what, shape, mask=what == "segments")
    for what, x in (("embeds", embeds), ("state", state)):
        if x is not None and tuple(np.shape(x)) != (*shape, config.d_model):
            raise ValueError(
                f"{what} must be [rows, columns, d_model] = {[*shape, config.d_model]}; found {list(np.shape(x))}"
            )
    _check_values(config, tokens, positions, segments)


def _check_values(config: ModelConfig, tokens: Any, positions: Any, segments: Any) -> None:
    real = None
    if segments is not None:
        marks = known(segments)
        if marks is None:
            return  # what is padding is not known
        at = _outside(marks, None)
        if at is not None:
            raise ValueError(f"segments{list(at)} is {marks[at]}: rows' parts are numbered from 1, and 0 is padding")
        real = marks > 0
    ids = known(tokens)
    if ids is not None:
        check_ids(config, ids, "tokens", real)
    if positions is not None:
        check_positions(config, positions, real)


def check_positions(config: ModelConfig, positions: Any, real: np.ndarray | None = None) -> None:
    """Raises ValueError for positions [B, S] before 0, or without an embedding where those are learned."""
    learned = config.positions == "learned"
    places = known(positions)
    at = None if places is None else _outside(places, config.max_length if learned else None, real)
    if at is not None and places is not None:
        limit = f", and the model has learned positions 0..{config.max_length - 1}" if learned else ""
        raise ValueError(f"positions{list(at)} is {places[at]}: positions count from 0{limit}")


def check_room(columns: int, index: Any, length: int) -> None:
    """Raises ValueError where `columns` more columns do not fit a cache of `length`, of which `index` are written."""
    # A write past the end would be moved back over what is there.
    written = known(index)
    start = 0 if written is None else int(written.max())
    if start + columns > length:
        full = f", of which {start} are written" if start else ""
        raise ValueError(f"{columns} tokens do not fit a cache of {length} columns{full}")


def check_depth(depth: Any, rows: int) -> int | jax.Array:
    """A number of iterations, or one for each row, none negative where they are known: 0 reads the starting state."""
    array = depth if hasattr(depth, "dtype") else np.asarray(depth)
    if array.shape not in ((), (rows,)) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"depth must be an integer or an array of one for each of {rows} rows; found dtype {array.dtype} of shape"
            f" {list(array.shape)}"
        )
    values = known(array)
    if values is not None and values.size and values.min() < 0:
        raise ValueError(f"depth is a number of iterations, found {int(values.min())}")
    if isinstance(depth, jax.Array):
        return depth.astype(jnp.int32)
    return int(array) if array.ndim == 0 else jnp.asarray(array, jnp.int32)


def check_replay(
    config: ModelConfig, tokens: tuple[int, ...] | None = None, routes: tuple[int, ...] | None = None
) -> None:
    """Raises ValueError for a model without choices to replay, or choices of a shape that tokens [B, S] do not need."""
    layers = config.per_layer("ffn").count("moe")
    if config.depth == "recurrent" or not layers or config.moe.router == "expert_choice":
        raise ValueError(
            "routes require a plain stack whose tokens choose their experts; this model has"
            f" depth={config.depth!r}, {layers} layers with experts and router={config.moe.router!r}: leave them out"
        )
    if tokens is None or routes is None or routes == (*tokens, layers, config.moe.top_k):
        return
    wrong = f"{routes[2:]} after B and S" if routes[:2] == tokens else f"{routes} for tokens {tokens}"
    raise ValueError(f"routes must be [B, S, {layers}, {config.moe.top_k}], found {wrong}")


def _outside(x: np.ndarray, limit: int | None, real: np.ndarray | None = None) -> tuple[int, ...] | None:
    """Where the first real value below 0 or from `limit` on stands, None where there is none."""
    # Whether there is one takes two passes and no memory; only then is it looked for.
    if not x.size or (x.min() >= 0 and (limit is None or x.max() < limit)):
        return None
    wrong = (x < 0) if limit is None else (x < 0) | (x >= limit)
    wrong &= True if real is None else real
    return tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else None
