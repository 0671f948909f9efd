"""Thoughts that tell the steps they stand for (SIM-CoT), that are mixtures of tokens, and that became alike."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from data.thoughts import Curriculum, thought_batch
from infer.feedback import choose, mix
from infer.load import load_run
from infer.scoring import score
from infer.thoughts import Thoughts, thoughts_of
from model.latent import mean_cosine, think
from settings.data import SoftConfig
from store.records import read_metrics
from tests.model.common import random_params
from tests.sampled import generate
from tests.train.test_thoughts import IDS, KEY, chains, columns, model
from tests.train.test_thoughts_run import config
from train.loop import run
from train.objectives.thoughts import coconut_objective

CURRICULUM = Curriculum(max_stage=2, thoughts_per_step=2)
SOFT = SoftConfig(feedback="soft", soft_tokens=3, soft_temperature=0.7)


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Any:
    """One of the eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


def batch_of(stage: int, step_length: int = 3) -> TokenRows:
    """A batch as a source gives it, with the steps that its thoughts stand for."""
    batch = thought_batch(chains(), CURRICULUM, IDS, stage, first=6, length=16, step_length=step_length)
    thoughts = CURRICULUM.thoughts(stage)
    latent = batch.latent[:, 6 : 6 + thoughts] if thoughts else None
    return jax.tree.map(jnp.asarray, batch.replace(latent=latent, first=6 if thoughts else 0))


def test_steps_of_rows() -> None:
    """Steps that thoughts stand for, one for every two of them; none where nothing is thought."""
    assert batch_of(0).steps is None
    batch, given = batch_of(2), chains()
    assert batch.steps.shape == (4, 2, 3)
    for row, chain in enumerate(given):
        for k, step in enumerate(chain.steps):
            assert batch.steps[row, k, : len(step)].tolist() == step
            assert batch.step_mask[row, k].tolist() == [1.0] * len(step) + [0.0] * (3 - len(step))
    assert batch_of(1).steps.shape == (4, 1, 3)
    with pytest.raises(ValueError, match="a step has 2 tokens, but steps are told in 1 columns"):
        batch_of(1, step_length=1)
    # A row of a stage before tells what it has thought about.
    mixed = Curriculum(max_stage=2, thoughts_per_step=2, uniform_prob=1.0)
    rng = np.random.default_rng(0)
    drawn = thought_batch(chains(20), mixed, IDS, 2, rng=rng, first=6, length=16, step_length=3)
    np.testing.assert_array_equal((drawn.step_mask.sum(2) > 0).sum(1), drawn.latent.sum(1) // 2)


@functools.partial(jax.jit, static_argnums=0)
def losses(weight: float, params: Any, batch: TokenRows) -> Any:
    """The objective."""
    return coconut_objective(model(), step_weight=weight)(params, batch, KEY)


@jax.jit
def told(params: Any, batch: TokenRows) -> jax.Array:
    """The log-probs [B, 2, 3] of steps after two thoughts each, by one row at a time."""
    rows = columns(batch.replace(latent=jnp.pad(batch.latent, ((0, 0), (6, 6)))))
    fed = think(model(), params, rows, thoughts=4, first=6, capture=("thoughts",)).captured["thoughts"]

    def one(thoughts: jax.Array, step: jax.Array) -> jax.Array:
        embeds = jnp.concatenate([thoughts, jnp.full((3, 32), jnp.nan)])[None]
        hidden = model().apply(params, jnp.concatenate([jnp.zeros(2, int), step])[None], embeds=embeds).hidden
        return jax.nn.log_softmax(model().logits(params, hidden))[0, jnp.arange(3) + 1, step]

    return jax.vmap(jax.vmap(one))(fed.reshape(4, 2, 2, 32), batch.steps)


def test_the_loss_of_steps_is_their_cross_entropy() -> None:
    """Of each step after the thoughts in its place alone; it has a gradient with respect to them."""
    params, batch = random_params(model()), batch_of(2)
    plain, with_steps = losses(0.0, params, batch), losses(0.5, params, batch)
    missed = -(told(params, batch) * batch.step_mask).sum()
    found, count = with_steps[2]["thoughts/step_loss"]
    assert int(count) == 12
    np.testing.assert_allclose(found, missed, rtol=1e-5)
    np.testing.assert_allclose(with_steps[0], plain[0] + 0.5 * plain[1] * missed / 12, rtol=1e-5)
    apart = jax.jit(jax.grad(lambda params: losses(1.0, params, batch)[0]))(params)["embed"][IDS.start]
    # Only thoughts see the start marker: what steps say of them moves it.
    assert np.abs(apart - jax.jit(jax.grad(only_answers))(params, batch)["embed"][IDS.start]).max() > 1e-3


def only_answers(params: Any, batch: TokenRows) -> jax.Array:
    """The loss without what thoughts tell."""
    return coconut_objective(model())(params, batch, KEY)[0]


def test_cosine() -> None:
    """Over the pairs of a row that are there; alike is 1, at right angles 0."""
    nan = jnp.full(2, jnp.nan)
    x, y = jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0])
    total, pairs = mean_cosine(jnp.stack([jnp.stack([x, x, y]), jnp.stack([x, 3 * x, nan])]))
    assert (float(total), float(pairs)) == (2.0, 4.0)
    metrics = losses(0.0, random_params(model()), batch_of(2))[2]
    assert float(metrics["thoughts/cosine"][1]) == 4 * 6
    assert "thoughts/cosine" not in losses(0.0, random_params(model()), batch_of(0))[2]


def test_soft_thoughts_by_hand() -> None:
    """Each is the mixture of the likeliest tokens after what came before it, in sampling as in scoring."""
    params, prompt = random_params(model()), [5, 7, 9, 60, 61, 61, 62]
    apply = jax.jit(lambda params, embeds: model().apply(params, jnp.array([prompt]), embeds=embeds).hidden)
    says = jax.jit(lambda params, hidden: jax.nn.log_softmax(model().logits(params, hidden)))
    embeds, table = np.full((1, 7, 32), np.nan, np.float32), np.asarray(params["embed"])
    for column in (4, 5):
        logps = np.asarray(says(params, apply(params, embeds)))[0, column - 1]
        ids = np.argsort(-logps)[:3]
        weights = np.exp(logps[ids] / 0.7) / np.exp(logps[ids] / 0.7).sum()
        embeds[0, column] = (weights[:, None] * table[ids]).sum(0) * model().config.embed_scale
    want = np.asarray(says(params, apply(params, embeds)))[0, -1]
    found, plain = (
        score(model(), params, [prompt, prompt], [[3], [11]], thoughts=Thoughts(2, soft=soft)).logps[:, 0]
        for soft in (SOFT, None)
    )
    np.testing.assert_allclose(found, want[[3, 11]], atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3
    said = generate(model(), params, [prompt], KEY, temperature=0.0, max_new_tokens=1, thoughts=2, soft=SOFT)
    assert int(said.tokens[0, 0]) == int(want.argmax())


def test_mixtures_carry_gradients() -> None:
    """In training, through the weights and through the embeddings."""
    params, logits = random_params(model()), jnp.linspace(0, 1, 64)[None, None]

    def mixed(params: Any, logits: jax.Array) -> jax.Array:
        chosen = choose(logits, SOFT)
        return (mix(model(), params, chosen.ids, chosen.scores, SOFT) ** 2).sum()

    by_table, by_logits = jax.grad(mixed, (0, 1))(params, logits)
    assert np.abs(by_table["embed"]).sum(1).nonzero()[0].tolist() == [61, 62, 63]
    assert np.abs(by_logits[0, 0]).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"thoughts__feedback": "soft", "thoughts__method": "pause"}, "for methods that feed thoughts back"),
        ({"thoughts__step_weight": 1.0, "thoughts__method": "icot"}, "has thoughts tell steps"),
        ({"thoughts__feedback": "hard"}, "feedback"),
    ],
)
def test_what_has_no_thoughts_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(config(**changes), tmp_path / "run")


def test_soft_thoughts_from_training_to_rewards(tmp_path: Path) -> None:
    """What is fed back is kept with the run, and a policy draws it; ratios of thoughts and of tokens are 1 at first."""
    soft: dict[str, Any] = {"thoughts__feedback": "soft", "thoughts__soft_tokens": 4}
    run(config(**soft, thoughts__step_weight=0.5, checkpoint__every=6), tmp_path / "sft")
    records = [r for r in read_metrics(tmp_path / "sft") if "loss" in r]
    assert "thoughts/step_loss" not in records[0] and {"thoughts/step_loss", "thoughts/cosine"} <= set(records[-1])
    ending = load_run(tmp_path / "sft").ending
    assert ending.soft == SoftConfig(feedback="soft", soft_tokens=4) and ending.thoughts == 2
    found = thoughts_of(ending)
    assert found is not None and found.soft == ending.soft
    sampling: dict[str, Any] = {"rl__prompts": 2, "rl__samples": 4, "rl__max_new_tokens": 8}
    noise: dict[str, Any] = {"rl__thought_noise": "one_sided", "rl__first_thought": "best"}
    changes = config(algorithm="grpo", steps=2, eval__loss_batches=0, **sampling, **noise)
    changes.init_from = str(tmp_path / "sft")
    changes.rl.rewards.repetition = 1.0
    run(changes, tmp_path / "grpo")
    first = next(r for r in read_metrics(tmp_path / "grpo") if "ratio_deviation/max" in r)
    assert first["ratio_deviation/max"] < 1e-4
    assert load_run(tmp_path / "grpo").ending == ending
