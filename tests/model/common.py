"""Shared by the tests of the model room: one way to run a model, one way to compare."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import Model, ModelConfig, build

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
    "max_length": 32,
}


def tiny(**changes: Any) -> Model:
    """A two-layer model of 32 dimensions."""
    return build(ModelConfig.from_dict(TINY | changes))


@functools.cache
def random_params(model: Model, seed: int = 0) -> Any:
    """Random parameters, made without compiling `init`: norms around 1, biases that matter, matrices that
    keep the scale.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name, noise = path[-1].key, rng.standard_normal(leaf.shape)
        spread = {"embed": 1.0, "position_embed": 1.0}.get(name, 0.3)
        return jnp.asarray(spread * noise + (1.0 if name in ("scale", "var") else 0.0), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def tokens_of(model: Model, shape: tuple[int, int] = (2, 12), seed: int = 1) -> jax.Array:
    """Random tokens."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, model.config.vocab_size, shape), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def forward(model: Model, params: Any, tokens: Any, positions: Any = None, segments: Any = None) -> Any:
    """(logits, hidden) of one full pass."""
    hidden = model.apply(params, tokens, positions, segments).hidden
    return model.logits(params, hidden), hidden


@functools.partial(jax.jit, static_argnums=0)
def apply(model: Model, params: Any, tokens: Any, **rest: Any) -> Any:
    """`model.apply`, compiled: far quicker for a new shape than operation by operation."""
    return model.apply(params, tokens, **rest)


def left_pad(tokens: np.ndarray, pads: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """tokens, positions and segments of rows moved right by `pads` columns (the last tokens fall off)."""
    width = tokens.shape[1]
    padded = np.zeros_like(tokens)
    segments = np.zeros_like(tokens)
    for row, pad in enumerate(pads):
        padded[row, pad:] = tokens[row, : width - pad]
        segments[row, pad:] = 1
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    return tuple(jnp.asarray(x, jnp.int32) for x in (padded, positions, segments))  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnums=(0, 5))
def cached(model: Model, params: Any, tokens: Any, positions: Any, segments: Any, prefill: int) -> jax.Array:
    """Logits of a prefill of `prefill` columns followed by single steps."""
    cache = model.init_cache(*tokens.shape)
    cut = slice(0, prefill)
    out = model.apply(params, tokens[:, cut], positions[:, cut], segments[:, cut], cache)

    def step(cache: Any, column: Any) -> Any:
        new = model.apply(params, *(part[:, None] for part in column), cache)
        return new.cache, new.hidden[:, 0]

    rest = tuple(part[:, prefill:].T for part in (tokens, positions, segments))
    _, hidden = jax.lax.scan(step, out.cache, rest)
    return model.logits(params, jnp.concatenate([out.hidden, hidden.swapaxes(0, 1)], 1))


def distance(got: Any, want: Any) -> float:
    """Largest error in units of the standard deviation of what was expected."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    return float(np.abs(got - want).max() / want.std())


def assert_close(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Within `tolerance` standard deviations, and the same argmax over the last axis."""
    found = distance(got, want)
    assert found < tolerance, f"off by {found:.3g} standard deviations, allowed {tolerance:g}"
    np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(want, -1))
