"""Shared by the tests of infer, train and rl: a tiny model, a tokenizer, prompts, a count of compilations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers.characters import CharTokenizer
from model import Model, ModelConfig, build

TOKENIZER = CharTokenizer("0123456789+=")
TINY: dict[str, Any] = {
    "vocab_size": TOKENIZER.vocab_size,
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "d_ff": 48,
    "max_length": 64,
    "logit_scale": 0.25,
}


@functools.cache
def tiny(n_layers: int = 1) -> Model:
    """The model of these tests: one layer of 32 dimensions, sixteen tokens."""
    return build(ModelConfig.from_dict(TINY | {"n_layers": n_layers}))


@functools.cache
def tiny_params(n_layers: int = 1) -> Any:
    """Random parameters that give every token a fair chance and every position a say."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        spread = {"embed": 1.0}.get(path[-1].key, 0.3)
        noise = spread * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + (1.0 if path[-1].key == "scale" else 0.0), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tiny(n_layers).abstract())


def prompts_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random prompts of these lengths, without control tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, TOKENIZER.vocab_size, length).tolist() for length in lengths]


@functools.partial(jax.jit, static_argnums=0)
def forward(model: Model, params: Any, tokens: Any, positions: Any = None, segments: Any = None) -> jax.Array:
    """Logits of one full pass."""
    return model.logits(params, model.apply(params, tokens, positions, segments).hidden)


def trees_equal(left: Any, right: Any) -> bool:
    """Whether two trees hold the same bits."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)


def assert_trees_close(left: Any, right: Any, tolerance: float = 1e-6) -> None:
    """Two trees of the same structure agree within an absolute tolerance."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), 0, tolerance), left, right)


@contextmanager
def counted_traces() -> Iterator[list[str]]:
    """A list that grows by one entry for every function that is lowered inside the context."""
    seen: list[str] = []
    active = [True]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if active[0] and event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        active[0] = False
