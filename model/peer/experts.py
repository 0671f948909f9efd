"""The chosen single-neuron experts applied to tokens, with dense gradients or through a tap, row by row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.peer.banks import table_rows
from model.platform import platform
from model.sharding import batch_parts

Arrays = dict[str, jax.Array]

# The rows that one chunk of tokens gathers from one table: small enough for a CPU's cache, or for many to be in flight.
CHUNK_BYTES = {"cpu": 2**24}
CHUNK_BYTES_ACCELERATOR = 2**26
# Row numbers travel as float32 in the taps, which holds integers exactly up to here.
MAX_ROWS = 2**24


def experts(
    activate: Callable[[jax.Array], jax.Array],
    down: jax.Array,
    up: jax.Array,
    x: jax.Array,
    gates: jax.Array,
    indices: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k gate_k act(x . down_k) up_k [T, D] and x . down [T, K] for the rows `indices` [T, K] of two tables [N, D]."""
    before = dot_rows(x, take_rows(down, indices, x.dtype))
    weights = (gates * activate(before)).astype(x.dtype)
    return mix_rows(weights, take_rows(up, indices, x.dtype)), before


def take_rows(table: jax.Array, indices: jax.Array, dtype: Any) -> jax.Array:
    """Rows [T, K, D] in the compute dtype: cast after the gather, for the whole table would be a pass over all of N."""
    return table.at[indices].get(mode="promise_in_bounds").astype(dtype)


def dot_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x [T, D] with its own rows [T, K, D] -> [T, K] fp32."""
    return jnp.einsum("td,tkd->tk", x, rows, preferred_element_type=jnp.float32)


def mix_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows [T, K, D] summed with weights [T, K] -> [T, D] in the dtype of the rows."""
    return jnp.einsum("tk,tkd->td", weights, rows, preferred_element_type=jnp.float32).astype(rows.dtype)


def tap_shapes(config: ModelConfig, tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The tap of one layer for `tokens` tokens: zeros of these shapes, whose gradient is that of the layer's tables.

    Row `indices[t, k]` of table `down` has the gradient Σ down[t, k] inputs[t], of table `up` Σ up[t, k] outputs[t];
    `calls` counts how often the tap was used, for a second use would add row numbers to row numbers. Raises
    ValueError where row numbers would not be exact.
    """
    if table_rows(config) > MAX_ROWS:
        raise ValueError(
            f"sparse rows number up to {MAX_ROWS} rows exactly, found {table_rows(config)};"
            " split the experts over several layers, or train them densely"
        )
    pairs = jax.ShapeDtypeStruct((tokens, config.peer.heads * config.peer.top_k), jnp.float32)
    vectors = jax.ShapeDtypeStruct((tokens, config.d_model), jnp.dtype(config.dtype))
    calls = jax.ShapeDtypeStruct((), jnp.float32)
    return {"indices": pairs, "down": pairs, "up": pairs, "inputs": vectors, "outputs": vectors, "calls": calls}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tapped_experts(
    static: tuple[Callable[[jax.Array], jax.Array], int],
    tap: Arrays,
    down: jax.Array,
    up: jax.Array,
    x: jax.Array,
    gates: jax.Array,
    indices: jax.Array,
) -> jax.Array:
    """`experts` in chunks, with how = (activation, chunk), whose gradient with respect to the tap is the tables'."""
    return _tapped_forward(static, tap, down, up, x, gates, indices)[0]


def _tapped_forward(
    static: Any, tap: Arrays, down: jax.Array, up: jax.Array, *flat: jax.Array
) -> tuple[jax.Array, Any]:
    del tap
    activate, size = static
    y, before = in_chunks(functools.partial(experts, activate, down, up), size, *flat)
    return y, (down, up, before, *flat)


def _tapped_backward(static: Any, saved: Any, dy: jax.Array) -> tuple[Any, ...]:
    activate, size = static
    down, up, before, x, gates, indices = saved

    def chunk(before: jax.Array, gates: jax.Array, indices: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        pulled = dot_rows(dy, take_rows(up, indices, dy.dtype))
        after, pull = jax.vjp(activate, before)
        (d_before,) = pull(gates * pulled)
        dx = mix_rows(d_before.astype(dy.dtype), take_rows(down, indices, dy.dtype))
        return dx, after * pulled, d_before, gates * after

    dx, d_gates, down_weights, up_weights = in_chunks(chunk, size, before, gates, indices, dy)
    tap = {
        "indices": indices.astype(jnp.float32),
        "down": down_weights,
        "up": up_weights,
        "inputs": x,
        "outputs": dy,
        "calls": jnp.ones(()),
    }
    return tap, None, None, dx, d_gates, None


tapped_experts.defvjp(_tapped_forward, _tapped_backward)


def chunk_tokens(config: ModelConfig, x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Tokens at a time: `peer.chunk`, or as many as keep one gather of rows on a device within CHUNK_BYTES."""
    p, (tokens, width) = config.peer, x.shape
    if p.chunk:
        return min(p.chunk, tokens)
    budget = CHUNK_BYTES.get(platform(), CHUNK_BYTES_ACCELERATOR)
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else batch_parts(mesh)
    return max(1, min(tokens, devices * budget // (p.heads * p.top_k * width * x.dtype.itemsize)))


def in_chunks(f: Callable[..., Any], size: int, *arrays: jax.Array) -> Any:
    """f(*arrays) token by token, `size` of the leading axis at a time; padded with zeros to a multiple."""
    tokens = arrays[0].shape[0]
    steps = -(-tokens // size)
    if steps == 1:
        return f(*arrays)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, steps * size - tokens)] + [(0, 0)] * (x.ndim - 1))
        # A chunk takes every `steps`-th token, so that all devices of a mesh have some of theirs in each.
        return x.reshape(size, steps, *x.shape[1:]).swapaxes(0, 1)

    def paste(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(steps * size, *x.shape[2:])[:tokens]

    return jax.tree.map(paste, jax.lax.map(lambda part: f(*part), jax.tree.map(cut, arrays)))
