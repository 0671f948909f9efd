"""Parameter-efficient expert retrieval (PEER, 2407.04153): a million single neurons behind product keys."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from model.config import ModelConfig
from model.ffn import ACTIVATION_FUNCTIONS
from model.initial import weights
from model.platform import platform
from model.precision import by_rows
from model.sharding import batch_parts, partition_spec

Arrays = dict[str, jax.Array]

# The rows that one chunk of tokens gathers from one table: small enough for a CPU's cache, or for many to be in flight.
CHUNK_BYTES = {"cpu": 2**24}
CHUNK_BYTES_ACCELERATOR = 2**26
EPS = 1e-5
# Row numbers travel as float32 in the taps, which holds integers exactly up to here.
MAX_ROWS = 2**24


class PEER(nn.Module):
    """The sum of its banks of experts; a plain model has one, `grow_experts` adds more and freezes those before."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, train: bool = False) -> tuple[jax.Array, Arrays]:
        """x [B, S, D], segments [B, S] (0: padding) -> (y [B, S, D], sums over the newest bank)."""
        tokens, valid = x.reshape(-1, x.shape[-1]), segments.reshape(-1) > 0
        last = len(self.config.peer.banks)
        total = jnp.zeros_like(tokens)
        sums: Arrays = {}
        for i in range(last + 1):
            tap = self._tap(tokens.shape[0]) if i == last else None
            y, sums = retrieve(self._bank(i, i == last), tokens, valid, self.config, train and i == last, tap)
            total = total + y
        return total.reshape(x.shape), {f"sum/{name}": value for name, value in sums.items()}

    def _bank(self, index: int, live: bool) -> Arrays:
        """The arrays of one bank by their own names; a frozen bank lies in "state", where nothing moves it."""
        store, bank = jnp.dtype(self.config.param_dtype), {}
        for name, (init, axes, shape) in bank_leaves(self.config, index).items():
            boxed, full = nn.with_logical_partitioning(init, axes), bank_name(name, index)
            if live and name not in STATISTICS:
                bank[name] = self.param(full, boxed, shape, store)
            else:
                kind = jnp.float32 if name in STATISTICS else store
                make = functools.partial(self._state_leaf, boxed, shape, kind)
                bank[name] = self.variable("state", full, make).value
        return bank

    def _state_leaf(self, init: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
        return init(self.make_rng("params"), shape, dtype)

    def _tap(self, tokens: int) -> Arrays | None:
        if not self.has_variable("taps", "indices"):
            return None
        tap = {name: self.get_variable("taps", name) for name in tap_shapes(self.config, tokens)}
        if tap["indices"].shape[0] != tokens:
            found = tap["indices"].shape[0]
            raise ValueError(f"a tap made for {found} tokens, but the layer sees {tokens}: one tap per call of apply")
        return tap


STATISTICS = ("mean", "var")


def bank_name(name: str, index: int) -> str:
    """The name of a bank's leaf in the parameters: "keys" of the first bank, "keys_1" of the next."""
    return f"{name}_{index}" if index else name


def bank_sizes(config: ModelConfig) -> tuple[int, ...]:
    """How many experts each bank has (per head where heads have their own tables)."""
    return (config.peer.n_experts, *config.peer.banks)


def table_rows(config: ModelConfig, index: int = -1) -> int:
    """Rows of a bank's tables; of the newest bank by default."""
    return bank_sizes(config)[index] * (config.peer.heads if config.peer.separate else 1)


def bank_leaves(config: ModelConfig, index: int) -> dict[str, tuple[Any, tuple[str, ...], tuple[int, ...]]]:
    """Initialiser, logical axes and shape of every leaf of one bank.

    Tables N(0, 1/D) as in product-key memories (1907.05242), except that the `up` rows of a later bank are zero: it
    changes nothing until it has learnt something.
    """
    p, half = config.peer, half_width(config)
    keys, rows = math.isqrt(bank_sizes(config)[index]), table_rows(config, index)
    table = nn.initializers.normal(config.d_model**-0.5)
    key_axes, width = ("peer_heads", "halves", "keys", "key_dim"), p.heads * 2 * half
    leaves = {
        "query": (
            weights(config),
            ("embed", "peer_heads", "halves", "key_dim"),
            (config.d_model, p.heads, 2, half),
        ),
        "keys": (nn.initializers.normal(half**-0.5), key_axes, (1 if p.share_keys else p.heads, 2, keys, half)),
        "down": (table, ("rows", "row_width"), (rows, config.d_model)),
        "up": (nn.initializers.zeros if index else table, ("rows", "row_width"), (rows, config.d_model)),
    }
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    norm = {"query_norm_scale": ones, "query_norm_bias": zeros} if p.query_norm != "none" else {}
    norm |= {"mean": zeros, "var": ones} if p.query_norm == "batch" else {}
    return leaves | {name: (init, ("norm",), (width,)) for name, init in norm.items()}


def half_width(config: ModelConfig) -> int:
    """The width of one half of a query; raises ValueError where both halves together have an odd width."""
    width = config.peer.key_dim or config.d_model
    if width % 2:
        raise ValueError(f"a query of d_model={width} cannot be cut into two halves: give an even peer.key_dim")
    return width // 2


def retrieve(
    bank: Arrays, x: jax.Array, valid: jax.Array, config: ModelConfig, train: bool, tap: Arrays | None = None
) -> tuple[jax.Array, Arrays]:
    """One bank: x [T, D], valid [T] -> (sum over heads and their top-k of gate * act(x . down) up [T, D], sums).

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
        return tapped_experts((activate, size), tap, bank["down"], bank["up"], *flat), sums

    @jax.checkpoint
    def chunk(x: jax.Array, gates: jax.Array, indices: jax.Array) -> jax.Array:
        return experts(activate, bank["down"], bank["up"], x, gates, indices)[0]

    return in_chunks(chunk, size, *flat), sums


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
        seen = jax.lax.stop_gradient(features - bank["mean"]) * weight
        sums = {"query": seen.sum(0), "query_sq": (seen * seen).sum(0), "peer_tokens": tokens}
    normal = normal * bank["query_norm_scale"] + bank["query_norm_bias"]
    return normal.reshape(queries.shape), sums


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
    how: tuple[Callable[[jax.Array], jax.Array], int],
    tap: Arrays,
    down: jax.Array,
    up: jax.Array,
    x: jax.Array,
    gates: jax.Array,
    indices: jax.Array,
) -> jax.Array:
    """`experts` in chunks, with how = (activation, chunk), whose gradient with respect to the tap is the tables'."""
    return _tapped_forward(how, tap, down, up, x, gates, indices)[0]


def _tapped_forward(how: Any, tap: Arrays, down: jax.Array, up: jax.Array, *flat: jax.Array) -> tuple[jax.Array, Any]:
    del tap
    activate, size = how
    y, before = in_chunks(functools.partial(experts, activate, down, up), size, *flat)
    return y, (down, up, before, *flat)


def _tapped_backward(how: Any, saved: Any, dy: jax.Array) -> tuple[Any, ...]:
    activate, size = how
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


def usage(gates: jax.Array, indices: jax.Array, valid: jax.Array, rows: int) -> jax.Array:
    """The router score that each expert has gathered from the valid tokens, [rows] fp32."""
    scores = jax.lax.stop_gradient(gates) * valid[:, None, None]
    return jnp.zeros((rows,), jnp.float32).at[indices].add(scores, mode="promise_in_bounds")


def update_state(state: Arrays, sums: Arrays, config: ModelConfig) -> Arrays:
    """The running statistics of one layer after a step, from sums over all its tokens (torch's BatchNorm1d).

    `state` holds `mean` and `var` of the newest bank among others, `sums` what the layer reported; the running
    variance is the unbiased one.
    """
    last = len(config.peer.banks)
    mean_name, var_name = (bank_name(name, last) for name in STATISTICS)
    if mean_name not in state:
        return state
    n, keep = sums["peer_tokens"], config.peer.momentum
    moved = sums["query"] / jnp.maximum(n, 1)
    mean = state[mean_name] + moved
    var = (sums["query_sq"] - n * moved**2) / jnp.maximum(n - 1, 1)

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(n > 1, keep * old + (1 - keep) * new, old)

    return state | {mean_name: blend(state[mean_name], mean), var_name: blend(state[var_name], jnp.maximum(var, 0))}


def metrics(sums: Arrays, config: ModelConfig) -> Arrays:
    """Section 3.4: the share of experts used at all, and log N + Σ z log z (0: all alike); means over layers."""
    del config
    score = sums["usage"].reshape(-1, sums["usage"].shape[-1])
    z = score / jnp.maximum(score.sum(-1, keepdims=True), 1e-30)
    unevenness = math.log(score.shape[-1]) + jax.scipy.special.xlogy(z, z).sum(-1)
    return {"peer/usage": (score != 0).mean(), "peer/unevenness": unevenness.mean()}
