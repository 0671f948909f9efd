"""The recurrence of minGRU, all at once and step by step, as JSON: python -m benchmarks mingru [--repeats=8]

At each length the same [rows, length, width] problem runs as `associative` (logarithmic depth), as `loop` (a compiled
`lax.scan`) and as `differentiated` (that loop with the gradient that JAX derives instead of ours). `layer` is a whole
minGRU layer with its projections, under the implementation that this machine prefers, and `gru` a classic GRU
(1406.1078) of the same width, whose gates need the state, so that each step waits for a matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks.__main__ import seconds

LENGTHS = (512, 4096)


def measure(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> dict[str, float]:
    """Median milliseconds of function(*arguments), of its gradient, and the gradient's working memory in MB."""
    import jax

    gradient = jax.value_and_grad(lambda *parts: (function(*parts) ** 2).sum(), argnums=tuple(range(len(arguments))))
    compiled = [jax.jit(f).lower(*arguments).compile() for f in (function, gradient)]
    forward, both = (seconds(lambda f=f: f(*arguments), repeats)[repeats // 2] * 1e3 for f in compiled)
    memory = compiled[1].memory_analysis().temp_size_in_bytes / 2**20
    return {"forward_ms": round(forward, 2), "forward_backward_ms": round(both, 2), "memory_mb": round(memory, 1)}


def bench_length(length: int, rows: int, width: int, repeats: int) -> dict[str, Any]:
    """Every implementation at one length."""
    import jax

    from model.recurrence import linear_recurrence

    keys = jax.random.split(jax.random.key(0), 3)
    a = jax.nn.sigmoid(jax.random.normal(keys[0], (rows, length, width)))
    problem = (a, jax.random.normal(keys[1], a.shape), jax.random.normal(keys[2], (rows, width)))

    def differentiated(a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        def step(h: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            h = now[0] * h + now[1]
            return h, h

        return jax.lax.scan(step, start, (a.swapaxes(0, 1), b.swapaxes(0, 1)))[1].swapaxes(0, 1)

    found = {"differentiated": measure(differentiated, problem, repeats)}
    for name in ("loop", "associative"):
        found[name] = measure(lambda *parts, name=name: linear_recurrence(*parts, name), problem, repeats)
    x = jax.random.normal(keys[0], a.shape)
    found["layer"] = measure(*_layer(x), repeats)
    weights = tuple(width**-0.5 * jax.random.normal(key, (width, 3 * width)) for key in keys[:2])
    found["gru"] = measure(_gru, (*weights, x), repeats)
    return found


def _gru(inputs: Any, states: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    width = x.shape[2]

    def step(h: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
        gates = jax.nn.sigmoid(given[:, : 2 * width] + h @ states[:, : 2 * width])
        reset, keep = gates[:, :width], gates[:, width:]
        candidate = jnp.tanh(given[:, 2 * width :] + (reset * h) @ states[:, 2 * width :])
        h = keep * h + (1 - keep) * candidate
        return h, h

    return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), (x @ inputs).swapaxes(0, 1))[1].swapaxes(0, 1)


def _layer(x: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import jax
    import jax.numpy as jnp

    from model import ModelConfig
    from model.context import Context
    from model.mingru import MinGRU

    config = ModelConfig(
        vocab_size=2, d_model=x.shape[2], n_layers=1, n_heads=1, d_ff=1, mixer="mingru", positions="none"
    )
    ones = jnp.ones(x.shape[:2], jnp.int32)
    context, layer = Context(ones, ones, ones, ones, {}, None), MinGRU(config)
    weights = layer.init(jax.random.key(0), x, context, ones, None)
    return lambda weights, x: layer.apply(weights, x, context, ones, None)[0], (weights, x)


def bench_mingru(repeats: int, rows: int = 1, width: int = 128) -> dict[str, Any]:
    """Every implementation at every length."""
    found: dict[str, Any] = {str(length): bench_length(length, rows, width, repeats) for length in LENGTHS}
    return found | {"rows": rows, "width": width, "load": os.getloadavg()[0]}
