"""FP8 against plain matrix products on the device at hand: python -m benchmarks fp8 [--repeats=20]

Each figure is the median of one process that takes the variants in turn, so that a clock that swings swings for all of
them. Quantising the operands is part of the time.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.platform import float8_product
from model.precision import PRODUCTS, dot

PLAIN, QUANTIZED = ("float32", "bfloat16"), ("fp8", "fp8_tensor")
NOTE = "emulation: this device has no float8 units, so only the rounding is real, not the speed"


def variants() -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Products of fp32 x [M, K] and kernel [K, N] by name: plain in either dtype, and quantised."""

    def plain(x: jax.Array, kernel: jax.Array, dtype: str) -> jax.Array:
        return x.astype(dtype) @ kernel.astype(dtype)

    found: dict[str, Any] = {dtype: functools.partial(plain, dtype=dtype) for dtype in PLAIN}
    for name, product in itertools.product(QUANTIZED, PRODUCTS):
        found[f"{name}/{product}"] = functools.partial(dot, precision=name, product=product)
    return found


def training(product: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    """The product and both gradients, for a gradient of y like y itself."""
    y, pull = jax.vjp(product, x, kernel)
    return y, *pull(y)


def medians(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each action, taken in turn after one round that compiles."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            jax.block_until_ready(action())
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(found[1:])) for name, found in times.items()}


def compare(size: int, repeats: int) -> dict[str, Any]:
    """Of square products: milliseconds, TFLOP/s, speed relative to bf16 and the relative error of y, by variant."""
    x, kernel = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in (0, 1))
    products = variants()
    forward = {name: functools.partial(jax.jit(product), x, kernel) for name, product in products.items()}
    steps = {
        name: functools.partial(jax.jit(functools.partial(training, product)), x, kernel)
        for name, product in products.items()
    }
    exact = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    norm = jnp.linalg.norm(exact)
    error = {name: float(jnp.linalg.norm(action() - exact) / norm) for name, action in forward.items()}
    alone, whole = medians(forward, repeats), medians(steps, repeats)
    return {
        name: {
            "forward_ms": round(1e3 * alone[name], 3),
            "forward_and_backward_ms": round(1e3 * whole[name], 3),
            "tflops": round(6 * size**3 / whole[name] / 1e12, 3),
            "speed_over_bf16": round(whole["bfloat16"] / whole[name], 2),
            "error": float(f"{error[name]:.2g}"),
        }
        for name in products
    }


def bench_fp8(repeats: int, sizes: Sequence[int] = (256, 512, 1024)) -> dict[str, Any]:
    """`compare` for each size, with the device and the product it would choose by itself."""
    device, chosen = jax.devices()[0], float8_product()
    found = {"device": device.device_kind, "chosen": chosen, **({} if chosen == "native" else {"note": NOTE})}
    return found | {str(size): compare(size, repeats) for size in sizes}
