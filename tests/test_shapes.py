"""The shapes that signatures name are checked wherever the tests call a function, traced or not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from infer.drawing import draw
from infer.sampling import Truncation
from model.attention import einsum
from model.norms import layer_norm, rms_norm
from model.rope import apply_rope
from model.routing import router_logits
from rl.advantages import advantages
from rl.kl import kl
from rl.masks import row_mean
from rl.objectives import policy_loss
from rl.returns import returns_to_go

N, T, V = 3, 5, 7
TOKENS, SHORT = jnp.ones((N, T)), jnp.ones((N, T - 1))
HEADS = jnp.ones((2, 4, T, 6))
WRONG: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "norm of another width": (lambda x, s: rms_norm(x, s, 1e-6), (TOKENS, jnp.ones(T + 1))),
    "bias of another width": (lambda x, s, b: layer_norm(x, s, b, 1e-6), (TOKENS, jnp.ones(T), jnp.ones(1))),
    "angles of fewer positions": (apply_rope, (HEADS, jnp.ones((2, T - 1, 3)), jnp.ones((2, T - 1, 3)))),
    "values of fewer keys": (
        lambda q, k, v, m: einsum(q, k, v, m, 1.0),
        (HEADS, HEADS, HEADS[:, :, :-1], jnp.ones((2, T, T), bool)),
    ),
    "router of another width": (router_logits, (TOKENS, jnp.ones((T + 1, 8)))),
    "reference of fewer tokens": (kl, (TOKENS, SHORT)),
    "weights without tokens": (row_mean, (TOKENS, TOKENS[:, 0])),
    "mask of fewer tokens": (policy_loss, (TOKENS, TOKENS, jnp.ones(N), SHORT)),
    "rewards by row": (returns_to_go, (jnp.ones(N), TOKENS)),
    "whole numbers as log-probs": (kl, (TOKENS.astype(int), TOKENS.astype(int))),
    "fewer keys than rows": (
        lambda logits, keys: draw(logits, keys, jnp.ones(()), Truncation()),
        (jnp.ones((N, V)), jax.random.split(jax.random.key(0), N - 1)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("how", ["called", "traced"])
def test_wrong_shapes_are_refused(name: str, how: str) -> None:
    """A wrong axis or kind of number is an error that names the argument, also under eval_shape."""
    function, arguments = WRONG[name]
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments) if how == "called" else jax.eval_shape(function, *arguments)


def test_right_shapes_pass_under_transformations() -> None:
    """jit, vmap and grad see the shapes that a function is given inside them."""
    scores = jax.jit(advantages)(jnp.arange(6.0).reshape(2, 3))
    assert scores.shape == (2, 3)
    assert jax.vmap(lambda x: rms_norm(x, jnp.ones(T), 1e-6))(TOKENS).shape == (N, T)
    assert jax.grad(lambda x: kl(x, TOKENS).sum())(TOKENS).shape == (N, T)
    tokens, logps = jax.jit(draw, static_argnums=3)(
        jnp.ones((N, V)), jax.random.split(jax.random.key(0), N), jnp.ones(()), Truncation(top_k=2)
    )
    assert tokens.shape == logps.shape == (N,)
