"""GRPO for models that think in states: a rollout is replayed with its thoughts, and gradients flow through them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.sources.thoughts import SPECIALS, markers_of
from data.thoughts import Curriculum, Ending, ending_of
from data.tokenizers.characters import CharTokenizer
from model import Model, build
from model.latent import mapped
from rl.batch import RolloutRows
from rl.grpo import grpo_objective
from rl.rollout import RolloutOptions, RolloutWorker
from rl.source import RolloutSource
from tests.model.common import random_params
from tests.rl.test_rollout import RULES, Digits
from tests.sampled import generate
from tests.trunk import TINY
from train.completions import joined_rows
from train.objectives.losses import batch_logps

TOKENIZER = CharTokenizer("0123456789+=", specials=SPECIALS)
IDS = markers_of(TOKENIZER)
ENDING, UNMARKED = (ending_of(Curriculum(markers=marked), IDS, 0, 3) for marked in (True, False))
RECURRENT = {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 3, "draw": "poisson"}}


def model_of(kind: str) -> Model:
    """A tiny untied model: what an input embedding does is not mixed up with what the same row does as an output."""
    changes = RECURRENT if kind == "recurrent" else {}
    return build(TINY | {"vocab_size": TOKENIZER.vocab_size, "tied": False, **changes})


def params_of(model: Model) -> Any:
    """Weights with the gain of a trained model: others amplify rounding from layer to layer."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 0.7 * leaf, random_params(model))


def rollout_batch(model: Model, params: Any, ending: Ending = ENDING, **changes: Any) -> RolloutRows:
    """Two prompts with three thoughts, four samples each."""
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=2, seed=0))
    rules = replace(RULES, **changes)
    worker = RolloutWorker(
        model, asked, Digits(), TOKENIZER, rules, RolloutOptions(seed=5, ending=ending, say=lambda _: None)
    )
    source = RolloutSource(worker, rules, seed=5)
    return jax.tree.map(jnp.asarray, source.next(params, 0))


def deviation(model: Model, params: Any, batch: RolloutRows) -> float:
    """How far the ratio of new to old probabilities is from 1, at most."""
    _, _, metrics = jax.jit(grpo_objective(model))(params, batch, jax.random.key(0))
    return float(metrics["ratio_deviation/max"])


@pytest.mark.more_but("stack-changes0")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("stack", {}), ("stack", {"slots": 3}), ("recurrent", {}), ("recurrent", {"depth": "drawn", "max_depth": 5})],
)
def test_a_fresh_rollout_is_on_policy(kind: str, changes: dict[str, Any]) -> None:
    """And what was thought belongs to it: without the mask it is another policy."""
    model = model_of(kind)
    params = params_of(model)
    batch = rollout_batch(model, params, **changes)
    rows, width = joined_rows(batch), batch.shared.tokens.shape[1]
    assert rows.latent.shape == (8, 3) and rows.latent.all()
    first = width - 4
    assert rows.first == batch.shared.first == first
    assert (rows.tokens[:, first : first + 3] == IDS.latent).all()
    assert (rows.tokens[:, first - 1] == IDS.start).all() and not rows.mask[:, : first + 4].any()
    assert deviation(model, params, batch) <= 1e-5
    forgotten = batch.replace(shared=batch.shared.replace(latent=None))
    assert deviation(model, params, forgotten) > 1e-2
    fewer = batch.replace(shared=batch.shared.replace(latent=batch.shared.latent.at[:, 1].set(False)))
    assert deviation(model, params, fewer) > 1e-2


def test_thoughts_without_markers_are_on_policy_too() -> None:
    """The first token is drawn from the last thought; replayed one column to the left, it is another policy."""
    model = model_of("stack")
    params = params_of(model)
    batch = rollout_batch(model, params, UNMARKED)
    prompts = batch.shared
    assert (prompts.tokens[:, -3:] == IDS.latent).all() and UNMARKED.after == 0
    assert prompts.first == prompts.tokens.shape[1] - 3
    assert deviation(model, params, batch) <= 1e-5
    assert deviation(model, params, batch.replace(shared=prompts.replace(first=prompts.first - 1))) > 1e-2


@pytest.mark.more
@pytest.mark.more_but("stack")
@pytest.mark.parametrize("kind", ["stack", "recurrent"])
def test_gradients_flow_through_the_thoughts(kind: str) -> None:
    """To the start marker they come through the states that are fed back; the latent token has none to get."""
    model = model_of(kind)
    params = params_of(model)
    batch = rollout_batch(model, params)
    start, tokens = batch.shared.tokens.shape[1] - 1, batch.tokens
    # Random weights emit markers too, and those are tokens like any other.
    emitted = (tokens >= IDS.start) & (tokens <= IDS.end)
    rows = joined_rows(batch.replace(tokens=jnp.where(emitted, TOKENIZER.encode("1")[0], tokens)))

    def gradient(feedback: Any) -> np.ndarray:
        def total(params: Any) -> jax.Array:
            return (batch_logps(model, params, rows, feedback=feedback)[0][:, start:] * batch.mask).sum()

        return np.asarray(jax.jit(jax.grad(total))(params)["embed"])

    whole, cut = gradient(None), gradient(mapped(jax.lax.stop_gradient))
    assert np.abs(whole[IDS.start]).max() > 1e-3
    assert np.abs(whole[IDS.start] - cut[IDS.start]).max() > 1e-3
    assert not whole[IDS.latent].any() and whole[IDS.end].any()


@pytest.mark.more
def test_samples_and_slots_do_not_matter() -> None:
    """A sample with thoughts is the same alone and among others, whatever the padding."""
    model = model_of("stack")
    params = params_of(model)
    prompts = [[*TOKENIZER.encode(text), *ENDING.tokens] for text in ("1+2=", "1+1+1+1+1=", "7=")]
    rules: dict[str, Any] = {"max_new_tokens": 6, "thoughts": 3}
    whole = generate(model, params, prompts, jax.random.key(1), n=2, **rules)
    seated = generate(model, params, prompts, jax.random.key(1), n=2, slots=2, **rules)
    np.testing.assert_array_equal(whole.tokens, seated.tokens)
    greedy = generate(model, params, prompts, jax.random.key(1), temperature=0.0, **rules)
    alone = generate(model, params, prompts[2:], jax.random.key(1), temperature=0.0, **rules)
    np.testing.assert_array_equal(greedy.tokens[2:], alone.tokens)
    plain = generate(model, params, prompts, jax.random.key(1), temperature=0.0, max_new_tokens=6)
    assert (plain.tokens != greedy.tokens).any(1).sum() > 1


@pytest.mark.parametrize(
    ("prompt", "thoughts", "words"),
    [
        ("1+2=", 3, "do not end in so many latent tokens"),
        ("=", 3, "needs a token before its thoughts"),
        ("1+2=", -1, "thoughts must be >= 0, found -1"),
    ],
)
def test_prompts_without_places_are_refused(prompt: str, thoughts: int, words: str) -> None:
    model = model_of("stack")
    ids = TOKENIZER.encode(prompt + "1+1=")[: 8 if len(prompt) > 1 else 1]
    with pytest.raises(ValueError, match=words):
        generate(model, params_of(model), [ids], jax.random.key(0), max_new_tokens=2, thoughts=thoughts)
