"""What a mixture-of-experts layer costs beside a dense layer of as many active weights, one process, interleaved."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from model.config import ModelConfig
from model.ffn import FeedForward
from model.moe import MoE
from model.reports import Reports

# 32 experts, 4 of them active, each a quarter of the dense layer.
SIZES: dict[str, Any] = dict(vocab_size=512, d_model=256, n_layers=1, n_heads=4, d_ff=1024, ffn="moe")
EXPERTS: dict[str, Any] = dict(n_experts=32, top_k=4, d_expert=256, score="sigmoid", balance="bias")
WAYS: dict[str, dict[str, Any]] = {
    "capacity": dict(dispatch="capacity"),
    "capacity_1.0": dict(dispatch="capacity", capacity_factor=1.0),
    "capacity_1.25": dict(dispatch="capacity", capacity_factor=1.25),
    "ragged": dict(dispatch="ragged"),
}
Passes = dict[str, Callable[[], Any]]


def passes(module: Any, x: jax.Array) -> tuple[Passes, Reports]:
    """The compiled forward and training pass of a feed-forward (its losses included), and what it reports."""
    variables = jax.jit(module.init)(jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: getattr(leaf, "value", leaf), variables, is_leaf=lambda v: hasattr(v, "value")
    )
    params, rest = variables.pop("params"), variables
    dy = jax.random.normal(jax.random.key(2), x.shape)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, reports = module.apply({"params": params, **rest}, x)
        return (y * dy).sum() + sum(reports.losses.values()), reports

    forward = jax.jit(lambda params, x: module.apply({"params": params, **rest}, x)[0])
    training = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return {
        "forward": lambda: jax.block_until_ready(forward(params, x)),
        "training": lambda: jax.block_until_ready(training(params, x)),
    }, training(params, x)[0][1]


def bench_moe(repeats: int, tokens: int = 2048) -> dict[str, Any]:
    """Milliseconds per pass and their ratio to the dense layer's: medians of interleaved runs.

    The whole layer counts: router, dispatch, experts, combination, balance loss, gradients. "cpu" are ratios of
    processor seconds, which other processes disturb less; the load is that of a router fresh from `init`.
    """
    x = jax.random.normal(jax.random.key(1), (tokens // 256, 256, SIZES["d_model"]))
    layers = {"dense": passes(FeedForward(ModelConfig.from_dict(SIZES), gated=True), x)}
    for name, way in WAYS.items():
        layers[name] = passes(MoE(ModelConfig.from_dict(SIZES | {"moe": EXPERTS | way})), x)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for repeat in range(repeats + 1):
        for name, (both, _) in layers.items():
            for kind, run in both.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
                for clock, value in spent.items() if repeat else ():
                    seconds.setdefault((name, kind, clock), []).append(value)
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    found: dict[str, Any] = {"tokens": tokens, "load_average": round(os.getloadavg()[0], 2)}
    for name, (_, reports) in layers.items():
        found[name] = _row(middle, name)
        if reports.sums:
            load = reports.sums["load"]
            found[name]["max_violation"] = round(float(load.max() / load.mean() - 1), 3)
            found[name]["dropped"] = round(float(reports.sums["dropped"] / load.sum()), 4)
    return found


def _row(middle: dict[tuple[str, str, str], float], name: str) -> dict[str, Any]:
    """One layer's times and ratios; backward is what training takes beyond forward."""
    forward, training = (middle[name, kind, "wall"] for kind in ("forward", "training"))
    row = {"forward_ms": forward, "backward_ms": training - forward, "training_ms": training}
    row = {key: round(1e3 * value, 2) for key, value in row.items()}
    for kind in ("forward", "training"):
        row[f"{kind}_ratio"] = round(middle[name, kind, "wall"] / middle["dense", kind, "wall"], 3)
        row[f"{kind}_cpu_ratio"] = round(middle[name, kind, "cpu"] / middle["dense", kind, "cpu"], 3)
    return row
