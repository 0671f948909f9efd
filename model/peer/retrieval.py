"""Retrieval by product keys: normalised queries, the top-k of all pairs of sub-keys, gates."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.config import ModelConfig
from model.ffn import ACTIVATION_FUNCTIONS
from model.peer.experts import Arrays, chunk_tokens, experts, in_chunks, tapped_experts
from model.precision import by_rows
from model.sharding import batch_parts, partition_spec

EPS = 1e-5


def retrieve(
    bank: Arrays, x: jax.Array, valid: jax.Array, config: ModelConfig, train: bool, tap: Arrays | None = None
) -> tuple[jax.Array, Arrays, jax.Array]:
    """One bank: x [T, D], valid [T] -> (sum over heads and their top-k of gate * act(x . down) up [T, D], sums, and the
    experts retrieved [T, heads, k]).

    With a `tap` the tables count as constants, and their gradients leave as that of the tap, row by row.
    """
    p, dtype = config.peer, x.dtype
    kernel = bank["query"].astype(dtype)
    queries = jnp.matmul(x, kernel.reshape(kernel.shape[0], -1), preferred_element_type=jnp.float32)
    queries = queries.reshape(-1, *kernel.shape[1:])
    queries, sums = normalize_queries(queries, valid, bank, p.query_norm, train)
    size = chunk_tokens(config, x)
    scores, indices = route(queries.astype(dtype), bank["keys"].astype(dtype), p.top_k, size)
    gates = GATE_FUNCTIONS[p.gate](scores)
    if p.separate:
        indices = indices + bank["down"].shape[0] // p.heads * jnp.arange(p.heads)[:, None]
    sums["usage"] = usage(gates, indices, valid, bank["down"].shape[0])
    flat = (x, gates.reshape(x.shape[0], -1), indices.reshape(x.shape[0], -1))
    activate = ACTIVATION_FUNCTIONS[p.activation]
    if tap is not None:
        return tapped_experts((activate, size), tap, bank["down"], bank["up"], *flat), sums, indices

    @jax.checkpoint
    def chunk(x: jax.Array, gates: jax.Array, indices: jax.Array) -> jax.Array:
        return experts(activate, bank["down"], bank["up"], x, gates, indices)[0]

    return in_chunks(chunk, size, *flat), sums, indices


def route(queries: jax.Array, keys: jax.Array, top_k: int, size: int) -> tuple[jax.Array, jax.Array]:
    """`product_keys` in chunks of `size` tokens over all devices, each device on tokens of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else batch_parts(mesh)

    def local(queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return in_chunks(lambda q: product_keys(q, keys, top_k), max(1, size // parts), queries)

    if parts == 1 or queries.shape[0] % parts:
        return local(queries, keys)
    # Left to itself XLA gathers the operand of a top-k, [T, h, n] here, on every device.
    rows = partition_spec(("batch",))
    return jax.shard_map(local, in_specs=(rows, PartitionSpec()), out_specs=(rows, rows))(queries, keys)


def product_keys(queries: jax.Array, keys: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The top-k of all n * n sums of one sub-key per half, exactly (section 2.1).

    queries [T, h, 2, d], keys [h or 1, 2, n, d] -> scores fp32 and indices i * n + j, [T, h, k] each, descending.
    """
    (values, places), (others, other_places) = (
        jax.lax.top_k(half_scores(queries[:, :, half], keys[:, half]), top_k) for half in (0, 1)
    )
    sums = values[..., :, None] + others[..., None, :]
    pairs = places[..., :, None] * keys.shape[2] + other_places[..., None, :]
    scores, chosen = jax.lax.top_k(sums.reshape(*sums.shape[:2], -1), top_k)
    return scores, jnp.take_along_axis(pairs.reshape(*sums.shape[:2], -1), chosen, -1)


def half_scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """queries [T, h, d] against the keys [h or 1, n, d] of the same head or of all -> [T, h, n] fp32."""
    if keys.shape[0] == 1:
        product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
        return by_rows(product, queries, keys[0].T)
    return jnp.einsum("thd,hnd->thn", queries, keys, preferred_element_type=jnp.float32)


GATE_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": functools.partial(jax.nn.softmax, axis=-1),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}


def normalize_queries(
    queries: jax.Array, valid: jax.Array, bank: Arrays, kind: str, train: bool
) -> tuple[jax.Array, Arrays]:
    """Queries [T, h, 2, d] normalised over the valid tokens (batch), or each half over its own width (layer).

    The batch norm is that of product-key memories (1907.05242): over the h * 2 * d features of the flattened tokens,
    by this batch when `train`, else by the running statistics. Returns its sums as well, counted from the running mean,
    fp32.
    """
    if kind == "none":
        return queries, {}
    features = queries.reshape(queries.shape[0], -1).astype(jnp.float32)
    if kind == "layer":
        normal = jax.nn.standardize(queries.astype(jnp.float32), axis=-1, epsilon=EPS).reshape(features.shape)
        sums: Arrays = {}
    else:
        weight = valid[:, None].astype(jnp.float32)
        tokens = weight.sum()
        mean, var = bank["mean"], bank["var"]
        if train:
            mean = (features * weight).sum(0) / jnp.maximum(tokens, 1)
            var = ((features - mean) ** 2 * weight).sum(0) / jnp.maximum(tokens, 1)
        normal = (features - mean) * jax.lax.rsqrt(var + EPS)
        # From the running mean: the square of a large mean would take the digits of a small variance.
        centered = jax.lax.stop_gradient(features - bank["mean"]) * weight
        sums = {"query": centered.sum(0), "query_sq": (centered * centered).sum(0), "peer_tokens": tokens}
    normal = normal * bank["query_norm_scale"] + bank["query_norm_bias"]
    return normal.reshape(queries.shape), sums


def usage(gates: jax.Array, indices: jax.Array, valid: jax.Array, rows: int) -> jax.Array:
    """The router score that each expert has gathered from the valid tokens, [rows] fp32."""
    scores = jax.lax.stop_gradient(gates) * valid[:, None, None]
    return jnp.zeros((rows,), jnp.float32).at[indices].add(scores, mode="promise_in_bounds")
