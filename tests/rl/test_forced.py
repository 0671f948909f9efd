"""Forced tokens in an update: read by the model, never learnt from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infer.continuation import empty_continuation, force
from rl.batch import RolloutRows, training_batch
from rl.grpo import grpo_objective
from tests.sampled import generate
from tests.trunk import prompts_of, tiny, tiny_params
from train.completions import joined_rows

MODEL, T, N = tiny(), 8, 6


def forced_rows(places: range) -> RolloutRows:
    """Samples that were made to say 7 8 9 in the middle, where not stopped before, as a batch."""
    said = [[7, 8, 9] if n in places else [] for n in range(N)]
    continuation = force(empty_continuation(N, T), said, np.full(N, 2))
    options: dict[str, Any] = dict(n=2, max_new_tokens=T, stop=(2,), continuation=continuation)
    rollout = generate(MODEL, tiny_params(), prompts_of(3, 5, 4), jax.random.key(3), **options)
    return training_batch(rollout, np.random.default_rng(0).standard_normal(N))


@jax.jit
def gradient(batch: RolloutRows) -> Any:
    objective = grpo_objective(MODEL)

    def loss(params: Any) -> jax.Array:
        total, count, _ = objective(params, batch, jax.random.key(0))
        return total / count

    return jax.grad(loss)(tiny_params())


@jax.jit
def by_definition(batch: RolloutRows) -> Any:
    """-mean over the policy's own tokens of advantage x log-prob, whose gradient the first update's is."""
    rows = joined_rows(batch)

    def loss(params: Any) -> jax.Array:
        hidden = MODEL.apply(params, rows.tokens, rows.positions, rows.segments).hidden
        logps = jax.nn.log_softmax(MODEL.logits(params, hidden))[:, -T - 1 : -1]
        own = jnp.take_along_axis(logps, batch.tokens[..., None], -1)[..., 0] * batch.mask
        return -(own * batch.advantages[:, None]).sum() / batch.mask.sum()

    return jax.grad(loss)(tiny_params())


def test_forced_tokens_are_read_and_not_learnt_from() -> None:
    batch = forced_rows(range(N))
    forced = np.asarray(batch.present) & (batch.mask == 0)
    assert forced.sum() >= 3 * (N - 2)
    assert (np.asarray(batch.tokens)[forced].reshape(-1, 3) == [7, 8, 9]).all()
    assert not batch.old_logps[forced].any()
    moved = gradient(batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), moved, by_definition(batch))
    # What stands at a forced token in the sampler's log-probs is nobody's.
    strange = batch.replace(old_logps=np.where(forced, -50.0, batch.old_logps).astype(np.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), moved, gradient(strange))
    # What they say is read: with other tokens in their place everything after them has another gradient.
    other = batch.replace(tokens=np.where(forced, 10, batch.tokens).astype(np.int32))
    moves = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moved, gradient(other))
    assert max(jax.tree.leaves(moves)) > 1e-3
