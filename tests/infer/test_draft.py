"""Speculative decoding: the samples of plain decoding, in fewer steps when the guesses are good."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.draft import Draft
from infer.plan import Plan
from infer.sampler import Rollout
from model import Model, ModelConfig, build
from tests.sampled import generate
from tests.trunk import TINY, prompts_of, tiny

PROMPTS = prompts_of(3, 5, 7, 2)
T = 12
STOPS = tuple(range(2, 4))


@functools.cache
def model_of(slots: tuple[tuple[str, Any], ...] = ()) -> Model:
    """The tiny model with one module of multi-token prediction."""
    return build(ModelConfig.from_dict(TINY | {"n_layers": 2, "mtp": {"depth": 1}} | dict(slots)))


@functools.cache
def params_of(model: Model, noise: float = 0.15) -> Any:
    """A model that repeats the token before, and a drafting module that expects it to, both disturbed by `noise`."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name, random = path[-1].key, rng.standard_normal(leaf.shape)
        if name == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name == "proj":  # keep the embedding, drop the state
            random = noise * random + np.concatenate([np.eye(leaf.shape[1]), np.zeros((leaf.shape[1],) * 2)])
        return jnp.asarray(random if name in ("embed", "proj") else noise * random, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def sample(model: Model, params: Any, **options: Any) -> Rollout:
    given = {"max_new_tokens": T, "n": 3, "slots": 5, "stop": STOPS, "temperature": 1.0} | options
    return generate(model, params, PROMPTS, jax.random.key(3), **given)


def assert_same(drafted: Rollout, plain: Rollout) -> None:
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)
    np.testing.assert_array_equal(drafted.lengths, plain.lengths)
    np.testing.assert_array_equal(drafted.finished, plain.finished)
    np.testing.assert_allclose(drafted.logps, plain.logps, rtol=0, atol=1e-5)


@pytest.mark.more_but("0-0.0")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("slots", [0, 5])
def test_a_draft_changes_no_token(temperature: float, slots: int) -> None:
    model = model_of()
    params = params_of(model)
    plain = sample(model, params, temperature=temperature, slots=slots)
    drafted = sample(model, params, temperature=temperature, slots=slots, draft=True)
    assert_same(drafted, plain)
    assert plain.acceptance is None
    assert drafted.acceptance is not None
    assert 0.1 < drafted.acceptance < 0.9, "guesses must be both kept and taken back for this test to say anything"
    assert drafted.steps <= plain.steps


def test_good_guesses_halve_the_steps() -> None:
    model = model_of((("tied", True),))
    params = params_of(model, noise=0.0)
    plain, drafted = (sample(model, params, temperature=0.0, stop=(), slots=0, draft=on) for on in (False, True))
    assert_same(drafted, plain)
    assert drafted.acceptance == 1
    assert plain.steps == T
    assert drafted.steps == T // 2


@pytest.mark.more
def test_the_drafting_module_sees_every_pair_of_the_past() -> None:
    """Its guesses are those of a full pass over the finished text, so its cache has no hole and no stale column."""
    model = model_of()
    params = params_of(model)
    rollout = sample(model, params, temperature=0.0, stop=(), n=1, draft=True)
    hits = total = 0
    for prompt, tokens in zip(PROMPTS, rollout.tokens, strict=True):
        text = jnp.asarray([[*prompt, *tokens]])
        out = model.apply(params, text)
        guesses = model.logits(params, model.predict_ahead(params, out.hidden, text)[0].hidden)[0].argmax(-1)
        expected, i = [], len(prompt)  # replay: guess text[i + 1] once text[i] is drawn
        while i + 1 < text.shape[1]:
            expected.append(int(guesses[i - 1]) == int(text[0, i + 1]))
            i += 2 if expected[-1] else 1
        hits, total = hits + sum(expected), total + len(expected)
    assert rollout.acceptance == pytest.approx(hits / total)


def test_a_model_without_the_module_cannot_draft() -> None:
    with pytest.raises(ValueError, match=r"mtp\.depth=0"):
        sample(tiny(), params_of(tiny()), draft=True)


def test_the_ring_holds_a_sample_whose_guesses_all_fail() -> None:
    assert Plan(4, 4, 1, 8, 10, (), truncation=None, draft=Draft()).ring == 20  # type: ignore[arg-type]
