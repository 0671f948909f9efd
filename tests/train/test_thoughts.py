"""Objectives over thoughts: their parts by hand, sums that add up, and what they refuse."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.sources.batch import TokenRows
from data.thoughts import Chain, Curriculum, Markers, paired_batch, thought_batch
from model.latent import Columns, init_projector, project, think
from tests.model.common import forward, random_params, tiny
from train.objectives.losses import sft_objective
from train.objectives.thoughts import before_answer, coconut_objective, codi_objective, state_distance

IDS = Markers(start=60, latent=61, end=62, pad=63)
KEY = jax.random.key(0)


def chains(n: int = 4, seed: int = 0) -> list[Chain]:
    """Questions of different lengths with two steps and an answer of two tokens."""
    rng = np.random.default_rng(seed)
    ids = lambda size: rng.integers(0, 60, size).tolist()  # noqa: E731
    return [Chain(ids(2 + i % 3), [ids(2), ids(1)], ids(2)) for i in range(n)]


def columns(batch: TokenRows) -> Columns:
    """What `think` runs of rows whose `latent` [B, S] covers all columns."""
    return Columns(batch.tokens, batch.positions, batch.segments, batch.latent)


@functools.cache
def model() -> Any:
    return tiny(n_layers=1)


def cut(batch: TokenRows, thoughts: int) -> TokenRows:
    """The batch as a source gives it: `latent` [B, thoughts] from column 6, or none."""
    if not thoughts:
        return batch.replace(latent=None)
    return batch.replace(latent=batch.latent[:, 6 : 6 + thoughts], first=6)


def whole_batch(stage: int = 1) -> TokenRows:
    curriculum = Curriculum(max_stage=2, thoughts_per_step=2)
    return jax.tree.map(jnp.asarray, thought_batch(chains(), curriculum, IDS, stage, first=6, length=16))


def coconut_batch(stage: int = 1) -> TokenRows:
    return cut(whole_batch(stage), 2 * stage)


def codi_batches() -> tuple[TokenRows, TokenRows]:
    """A batch of two views, with `latent` [B, S] and as a source gives it."""
    batch = jax.tree.map(jnp.asarray, paired_batch(chains(), 3, IDS, first=6, length=14))
    return batch, cut(batch, 3)


def test_without_thoughts_it_is_sft() -> None:
    batch, params = coconut_batch(0), random_params(model())
    made = (coconut_objective(model()), sft_objective(model()))
    ours, theirs = (jax.jit(objective)(params, batch, KEY) for objective in made)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert ours[1] == theirs[1]


@pytest.mark.more
def test_micro_batches_add_up() -> None:
    """And the loss is the cross entropy of what follows the end marker, given the thoughts."""
    batch, params = coconut_batch(), random_params(model())
    objective = jax.jit(coconut_objective(model()))
    total, count, metrics = objective(params, batch, KEY)
    halves = [objective(params, jax.tree.map(lambda x, i=i: x[i : i + 2], batch), KEY) for i in (0, 2)]
    np.testing.assert_allclose(total, halves[0][0] + halves[1][0], rtol=1e-5)
    assert count == halves[0][1] + halves[1][1] == batch.mask.sum()
    assert metrics["loss"] == (total, count)
    hidden = think(model(), params, columns(whole_batch()), thoughts=2).hidden
    logps = jax.nn.log_softmax(model().logits(params, hidden)[:, :-1])
    picked = jnp.take_along_axis(logps, batch.tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(total, -(picked * batch.mask[:, 1:]).sum(), rtol=1e-5)


def test_state_distance_is_the_published_one() -> None:
    """Smooth L1 with threshold 1 over the teacher's deviation; only the student learns."""
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(2 * rng.standard_normal((3, 8)), jnp.float32) for _ in range(2))
    want = optax.huber_loss(student, teacher, delta=1.0).mean(-1) / teacher.std(-1)
    np.testing.assert_allclose(state_distance(student, teacher), want, rtol=1e-6)
    gradient = jax.grad(lambda t: state_distance(student, t).sum())(teacher)
    assert not gradient.any()


@pytest.mark.more
def test_codi_is_the_sum_of_its_parts() -> None:
    (whole, batch), params = codi_batches(), random_params(model())
    objective = jax.jit(codi_objective(model(), teacher_weight=0.5, gamma=2.0))
    total, count, metrics = objective(params, batch, KEY)
    student = think(model(), params, columns(whole), thoughts=3, first=6)
    view = batch.teacher
    assert view is not None
    _, hidden = forward(model(), params, view.tokens, view.positions, view.segments)
    rows = jnp.arange(4)
    apart = state_distance(student.hidden[rows, batch.answer - 1], hidden[rows, view.answer - 1])
    np.testing.assert_array_equal(before_answer(student, batch), student.hidden[rows, batch.answer - 1])
    taught, written = metrics["codi/teacher_loss"]
    np.testing.assert_allclose(metrics["codi/distance"][0], apart.sum(), rtol=1e-4)
    want = metrics["loss"][0] + count * (0.5 * taught / written + 2.0 * apart.mean())
    np.testing.assert_allclose(total, want, rtol=1e-4)
    # Two answer tokens for the student; three tokens of steps as well for the teacher.
    assert (int(count), int(written)) == (8, 20)


def test_reports_of_both_views_add_up() -> None:
    sparse = tiny(n_layers=1, ffn="moe", moe={"n_experts": 4, "d_expert": 16})
    _, batch = codi_batches()
    assert batch.teacher is not None
    _, _, metrics = jax.jit(codi_objective(sparse))(random_params(sparse), batch, KEY)
    tokens = (batch.segments > 0).sum() + (batch.teacher.segments > 0).sum()
    assert metrics["sums"].stack.sums["load"].sum() == tokens * sparse.config.moe.top_k


@pytest.mark.more
def test_a_few_steps_learn_with_a_projector() -> None:
    batch = coconut_batch(2)
    params = random_params(model()) | {"projector": init_projector(model(), KEY)}
    objective = coconut_objective(model(), lambda params, hidden: project(params["projector"], hidden))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        mean = lambda params: (lambda loss: loss[0] / loss[1])(objective(params, batch, KEY))  # noqa: E731
        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss, gradient

    state, losses = optimizer.init(params), []
    for _ in range(12):
        params, state, loss, gradient = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert np.abs(gradient["projector"]["up"]).max() > 0


def test_thoughts_need_a_place() -> None:
    with pytest.raises(ValueError, match="no state comes before them"):
        coconut_objective(model())(random_params(model()), coconut_batch().replace(first=0), KEY)


def test_prediction_further_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.mtp\.depth=1"):
        coconut_objective(tiny(mtp={"depth": 1}))
