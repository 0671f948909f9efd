"""A stack turned into a recurrent model computes what it did, at every depth, until it learns otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, build, hf
from model.depth.retrofit import retrofit
from tests.model.common import random_params

TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 24, (2, 8)), jnp.int32)
SMALL: dict[str, Any] = {"vocab_size": 24, "d_model": 32, "n_layers": 4, "n_heads": 2, "d_ff": 48, "max_length": 32}
MIXED: dict[str, Any] = {
    "mixer": ("gqa", "gqa", "mingru", "gqa"),
    "ffn": ("glu", "moe", "glu", "glu"),
    "moe": {"n_experts": 4, "top_k": 2, "d_expert": 16, "score": "sigmoid", "balance": "bias"},
}


def logits(model: Model, params: Any, tokens: jax.Array = TOKENS, **options: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda p: model.logits(p, model.apply(p, tokens, **options).hidden))(params))


@pytest.mark.parametrize("changes", [{}, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("injection", ["concat", "add"])
def test_one_pass_is_the_stack(changes: dict[str, Any], injection: str) -> None:
    stack = build(SMALL | changes)
    params = random_params(stack)
    model, moved = retrofit(stack, params, 1, 2, 1, injection=injection, mean=3)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, model.abstract())
    want = logits(stack, params)
    np.testing.assert_array_equal(logits(model, moved, depth=1), want)
    if injection == "concat":
        np.testing.assert_array_equal(logits(model, moved, depth=5), want)
    else:
        assert np.abs(logits(model, moved, depth=5) - want).max() > 1e-3


@pytest.mark.more
@pytest.mark.programs(250)
def test_chosen_layers_and_the_gradient_that_teaches_the_core_to_remember() -> None:
    stack = build(SMALL)
    params = random_params(stack)
    model, moved = retrofit(stack, params, (0,), (1, 2), (3,), mean=2)
    np.testing.assert_array_equal(logits(model, moved, depth=2), logits(stack, params))
    fewer, rest = retrofit(stack, params, [0], [2], [3], mean=2)
    assert fewer.config.n_layers == 3
    np.testing.assert_array_equal(rest["layer_1"]["mixer"]["q"], params["layer_2"]["mixer"]["q"])
    gradient = jax.grad(lambda p: (model.apply(p, TOKENS, depth=2).hidden ** 3).sum())(moved)
    assert float(jnp.abs(gradient["injection"]["kernel"][:32]).max()) > 0, "the state's half of the map must learn"


def test_a_checkpoint_of_the_hub(shared: Path) -> None:
    for family in ("llama3", "qwen2"):
        stack, params = hf.load(shared / "tiny_hf" / family)
        layers = stack.config.n_layers
        model, moved = retrofit(stack, params, 1, layers - 1, 0, mean=4)
        tokens = jnp.asarray(np.load(shared / "tiny_hf" / family / "golden.npz")["ids"], jnp.int32)
        np.testing.assert_array_equal(logits(model, moved, tokens, depth=1), logits(stack, params, tokens))


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ((1, 1, 1), {}, "make 3, the stack has 4"),
        ((2, 0, 2), {}, "a core needs at least one layer"),
        (([0], [1, 4], []), {}, r"different ones of 0\.\.3"),
        (([0], [1, 1], []), {}, "different ones"),
        ((1, 2, 1), {"injection": "gate"}, "computes what the stack did only with"),
        ((1, 2, 1), {"start": "random"}, "computes what the stack did only with"),
    ],
)
def test_wrong_use(parts: tuple[Any, Any, Any], options: dict[str, Any], message: str) -> None:
    stack = build(SMALL)
    with pytest.raises(ValueError, match=message):
        retrofit(stack, random_params(stack), *parts, **options)


def test_twice_is_refused() -> None:
    stack = build(SMALL)
    model, params = retrofit(stack, random_params(stack), 1, 2, 1)
    with pytest.raises(ValueError, match="recurrent already"):
        retrofit(model, params, 1, 2, 1)
