"""The experts that the sampler took are recorded, kept with their rows, and taken again by the update."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from infer.sampler import Rollout
from model import Model, build
from rl.batch import RolloutRows, training_batch, without_routes
from rl.experience import joined_rollout, rollout_of
from rl.rollout import RolloutOptions, RolloutWorker
from rl.source import RolloutSource
from tests.model.common import random_params
from tests.rl.test_rollout import RULES, Digits
from tests.sampled import generate
from tests.trunk import TINY, TOKENIZER, prompts_of
from train.completions import completion_logps, joined_rows

MOE = {"n_experts": 6, "top_k": 2, "d_expert": 24, "balance": "bias", "score": "sigmoid"}
PROMPTS = prompts_of(3, 5, 4, 2)


@functools.cache
def model_of() -> Model:
    """Three layers, the first and the last of experts."""
    return build(TINY | {"n_layers": 3, "ffn": ("moe", "glu", "moe"), "moe": MOE})


@functools.cache
def params() -> Any:
    """Weights with the gain of a trained model."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 0.7 * leaf, random_params(model_of()))


def rollout(**options: Any) -> Rollout:
    """Two samples of each prompt, with the experts taken."""
    limits: dict[str, Any] = {"max_new_tokens": 6, "n": 2, "stop": (2, 3), "routes": True}
    return generate(model_of(), params(), PROMPTS, jax.random.key(0), **limits | options)


def on_device(found: Rollout) -> RolloutRows:
    """The rollout as a training batch."""
    return jax.tree.map(jnp.asarray, training_batch(found, np.zeros(len(found.tokens))))


def logps_of(weights: Any, batch: RolloutRows) -> np.ndarray:
    """Log-probs of the completions, 0 after their ends."""
    logps = jax.jit(lambda p, b: completion_logps(model_of(), p, b)[0])(weights, batch)
    return np.asarray(logps * batch.mask)


def seen_and_routes(batch: RolloutRows) -> tuple[np.ndarray, np.ndarray]:
    """Where whole rows hold tokens [N, S], and the experts recorded there [N, S, layers, k]."""
    rows = joined_rows(batch)
    return np.asarray(rows.segments) > 0, np.asarray(rows.routes)


def own_routes(weights: Any, batch: RolloutRows, routes: jax.Array | None = None) -> np.ndarray:
    """The experts of one full pass [N, S, layers, k]."""
    rows = joined_rows(batch)
    columns = (rows.tokens, rows.positions, rows.segments)
    found = jax.jit(lambda p, routes: model_of().apply(p, *columns, routes=routes).routes)(weights, routes)
    return np.asarray(found)


def moved() -> Any:
    """The parameters after an update that changed the routers."""
    noise = np.random.default_rng(3)
    move = lambda path, x: x + noise.standard_normal(x.shape) if path[-1].key == "router" else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(move, params())


def test_recorded_are_the_choices_of_one_full_pass() -> None:
    batch = on_device(rollout())
    seen, routes = seen_and_routes(batch)
    assert routes.shape == (*seen.shape, 2, 2)
    np.testing.assert_array_equal(routes[seen], own_routes(params(), batch)[seen])
    assert len(np.unique(routes[seen])) == 6, "every expert is taken somewhere"


@pytest.mark.more
def test_slots_and_waves_keep_rows_and_routes_together() -> None:
    whole, few = rollout(), rollout(slots=2)
    emitted = whole.mask > 0
    np.testing.assert_array_equal(whole.tokens, few.tokens)
    assert whole.routes is not None and few.routes is not None
    np.testing.assert_array_equal(whole.routes[emitted], few.routes[emitted])
    np.testing.assert_array_equal(whole.prompt_routes, few.prompt_routes)


def test_replay_takes_the_recorded_experts_and_todays_gates() -> None:
    batch = on_device(rollout())
    (seen, routes), later = seen_and_routes(batch), moved()
    free = own_routes(later, batch)[seen]
    assert (np.sort(free) != np.sort(routes[seen])).any(-1).mean() > 0.2, "the routers moved"
    replayed = own_routes(later, batch, jnp.asarray(routes))
    np.testing.assert_array_equal(replayed[seen], routes[seen])
    plain = without_routes(batch)
    np.testing.assert_allclose(logps_of(params(), batch), logps_of(params(), plain), atol=1e-5)
    assert np.abs(logps_of(later, batch) - logps_of(later, plain)).max() > 1e-2
    assert np.abs(logps_of(later, batch) - logps_of(params(), batch)).max() > 1e-3, "the gates are today's"


def test_another_choice_is_another_policy() -> None:
    batch = on_device(rollout())
    old = np.asarray(batch.old_logps * batch.mask)
    np.testing.assert_allclose(logps_of(params(), batch), old, atol=1e-5)
    shared = batch.shared.replace(routes=(batch.shared.routes + 1) % 6)
    other = batch.replace(routes=(batch.routes + 1) % 6, shared=shared)
    assert np.abs(logps_of(params(), other) - old).max() > 1e-2


def test_gradients_reach_the_routers_of_replayed_choices() -> None:
    batch = on_device(rollout())
    total = lambda p: (completion_logps(model_of(), p, batch)[0] * batch.mask).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total))(params())
    assert np.abs(gradient["layer_0"]["ffn"]["router"]).max() > 1e-4


def test_chosen_and_joined_rollouts_keep_them() -> None:
    found = rollout()
    part = rollout_of(found, np.array([2, 0]), np.array([4, 5, 0, 1]))
    assert found.routes is not None and part.routes is not None and found.prompt_routes is not None
    np.testing.assert_array_equal(part.routes, found.routes[[4, 5, 0, 1]])
    wide = replace(part, prompts=np.pad(part.prompts, ((0, 0), (8, 0))))
    wide = replace(wide, prompt_mask=np.pad(part.prompt_mask, ((0, 0), (8, 0))))
    wide = replace(wide, prompt_routes=np.pad(part.prompt_routes, ((0, 0), (8, 0), (0, 0), (0, 0))))
    both = joined_rollout([found, wide])
    batch = on_device(both)
    seen, routes = seen_and_routes(batch)
    np.testing.assert_array_equal(routes[seen], own_routes(params(), batch)[seen])


@pytest.mark.more
def test_the_worker_records_where_it_is_told_to() -> None:
    """And the reference, another model, chooses for itself."""
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=2, seed=0))
    rules = replace(RULES, replay_routes=True)
    worker = RolloutWorker(
        model_of(),
        asked,
        Digits(),
        TOKENIZER,
        rules,
        RolloutOptions(seed=5, reference=moved(), say=lambda _: None, quiet=True),
    )
    batch = jax.tree.map(jnp.asarray, RolloutSource(worker, rules, seed=5).next(params(), 0))
    assert batch.routes.shape[2:] == batch.shared.routes.shape[2:] == (2, 2)
    np.testing.assert_allclose(batch.ref_logps * batch.mask, logps_of(moved(), without_routes(batch)), atol=1e-5)


def test_models_without_choices_are_refused() -> None:
    key, limits = jax.random.key(0), {"max_new_tokens": 2, "routes": True}
    dense = build(TINY)
    with pytest.raises(ValueError, match="0 layers with experts"):
        generate(dense, {}, PROMPTS, key, **limits)
    recurrent = build(TINY | {"n_layers": 3, "ffn": "moe", "moe": MOE, "depth": "recurrent"})
    with pytest.raises(ValueError, match="plain stack"):
        generate(recurrent, {}, PROMPTS, key, **limits)
    ahead = build(TINY | {"ffn": "moe", "moe": MOE, "mtp": {"depth": 1}})
    with pytest.raises(ValueError, match="they do not go with draft"):
        generate(ahead, {}, PROMPTS, key, draft=True, **limits)
    with pytest.raises(ValueError, match=r"must be \[B, S, 2, 2\], found \(1, 2\)"):
        model_of().apply(params(), jnp.ones((1, 3), jnp.int32), routes=jnp.zeros((1, 3, 1, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"found \(1, 4, 2, 2\) for tokens \(1, 3\)"):
        model_of().apply(params(), jnp.ones((1, 3), jnp.int32), routes=jnp.zeros((1, 4, 2, 2), jnp.int32))
