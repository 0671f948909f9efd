"""What a step costs as PEER's experts grow from 4,096 to 1,048,576, and what their optimiser remembers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.batch import TokenRows
from model import Model, build
from model.config import ModelConfig
from model.peer.banks import bank_leaves
from model.peer.experts import tap_shapes
from model.peer.retrieval import retrieve
from model.rules import learn
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer, optimizer_config
from train.sparse_tables import apply_rows, sparse_tables_of, table_states
from train.state import new_state
from train.step import make_step

Run = Callable[[], Any]

SIDES = (64, 128, 256, 512, 1024)
PEER = {"heads": 8, "top_k": 16}
MODEL: dict[str, Any] = dict(vocab_size=512, d_model=256, n_layers=6, n_heads=4, d_ff=768, max_length=256)
MIDDLE = ("glu", "glu", "peer", "glu", "glu", "glu")


def peer_model(side: int) -> Model:
    """Six blocks of which one in the middle retrieves from side * side experts (section 3.1)."""
    return build(MODEL | {"ffn": MIDDLE, "peer": PEER | {"n_experts": side * side}})


def layer_run(config: ModelConfig, tokens: int) -> Run:
    """Forward, backward and row update of the layer alone; each call is one step, in place."""
    leaves = bank_leaves(config, 0)
    keys = dict(zip(leaves, jax.random.split(jax.random.key(0), len(leaves)), strict=True))
    bank = jax.jit(
        lambda keys: {name: leaves[name][0](key, leaves[name][2], jnp.float32) for name, key in keys.items()}
    )
    dense = bank(keys)
    tables = {"layer": {name: dense.pop(name) for name in ("down", "up")}}
    hyper, valid = optimizer_config(lr=1e-3), jnp.ones(tokens, bool)
    x, target = jax.random.normal(jax.random.key(1), (2, tokens, config.d_model))

    def step(dense: Any, tables: Any, state: Any) -> Any:
        def loss(dense: Any, tap: Any) -> Any:
            y, sums, _ = retrieve(dense | tables["layer"], x, valid, config, train=True, tap=tap)
            return ((y - target) ** 2).sum(), sums["usage"].sum()

        tap = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in tap_shapes(config, tokens).items()}
        (gradients, tap), used = jax.grad(loss, argnums=(0, 1), has_aux=True)(dense, tap)
        dense = jax.tree.map(lambda p, g: p - 1e-6 * g, dense, gradients)
        common = {"count": tokens, "rate": jnp.float32(1e-3), "fine": jnp.isfinite(used), "hyperparameters": hyper}
        return dense, *apply_rows(tables, state, {"layer": tap}, model=config, **common)

    compiled, box = jax.jit(step, donate_argnums=(0, 1, 2)), [dense, tables, table_states(tables)]

    def once() -> Any:
        box[:] = compiled(*box)
        return box

    return once


def model_run(model: Model, rows: int, length: int) -> Run:
    """The real training step of a model on rows * length tokens; each call is one step, in place."""
    options = {"lr": 1e-3}
    by_rows = sparse_tables_of(model, optimizer_config(options), 10)
    optimizer = make_optimizer(options, 10, axes=model.axes())
    rule = lambda state, sums: learn(model.config, state, sums)  # noqa: E731
    step = make_step(sft_objective(model), optimizer, learn=rule, rows=by_rows)
    tokens = np.random.default_rng(0).integers(1, 512, (rows, length)).astype(np.int32)
    ones, positions = np.ones_like(tokens), np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = TokenRows(tokens=tokens, mask=ones.astype(np.float32), positions=positions, segments=ones)
    box = [new_state(jax.jit(model.init)(jax.random.key(0)), optimizer, 0, rows=by_rows)]

    def once() -> Any:
        box[0], metrics = step(box[0], batch)
        return metrics

    return once


def interleaved(runs: dict[int, Run], repeats: int) -> dict[int, float]:
    """The median seconds of every run, all of them taken in turns, after one call each that compiles."""
    times: dict[int, list[float]] = {side: [] for side in runs}
    for repeat in range(repeats + 1):
        for side, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                times[side].append(time.perf_counter() - started)
    return {side: float(np.median(found)) for side, found in times.items()}


def remembered(side: int) -> dict[str, int]:
    """Bytes that an optimiser keeps for the tables of side * side experts: AdamW's two moments, or two per row."""
    rows, width = side * side, MODEL["d_model"]
    table = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    state = jax.eval_shape(table_states, {"down": table, "up": table})
    return {"rows": sum(leaf.size * 4 for leaf in jax.tree.leaves(state)), "dense_adamw": 2 * 2 * rows * width * 4}


def report(times: dict[int, float], tokens: int) -> dict[str, Any]:
    """Microseconds per token by number of experts, and the most over the fewest experts."""
    per_token = {str(side * side): round(seconds / tokens * 1e6, 1) for side, seconds in times.items()}
    return {"microseconds_per_token": per_token, "largest_over_smallest": round(times[SIDES[-1]] / times[SIDES[0]], 2)}


def bench_peer(repeats: int, rows: int = 16, length: int = 128) -> dict[str, Any]:
    """Time per token of forward, backward and update at every number of experts, in turns, and optimiser memory."""
    tokens, before = rows * length, os.getloadavg()[0]
    layer = interleaved({side: layer_run(peer_model(side).config, tokens) for side in SIDES}, repeats)
    model = interleaved({side: model_run(peer_model(side), rows, length) for side in SIDES}, repeats)
    return {
        "tokens": tokens,
        "d_model": MODEL["d_model"],
        **PEER,
        "layer": report(layer, tokens),
        "model_of_6_layers": report(model, tokens),
        "optimizer_bytes": {str(side * side): remembered(side) for side in SIDES},
        "load": [round(before, 2), round(os.getloadavg()[0], 2)],
    }
