"""Reward models: a score of a text, learnt from pairs (Bradley-Terry); how often, and how surely, it is right."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from data.sources.pairs import PairRows
from model.lm import Model, Params
from model.sharding import replicate
from settings.preference import RewardModelConfig
from train.accumulate import UpdatePlan, per_token
from train.batches import on_devices
from train.completions import end_states
from train.objectives.losses import Loss, Objective, add_auxiliary_losses
from train.objectives.pairs import PairBatch, PairSource, batch_shapes, pair_plan, pair_rows
from train.objectives.reward_losses import bradley_terry
from train.setup import Algorithm, EvaluationSpec, Setup, Update

BINS = 10


def build(setup: Setup) -> Algorithm:
    """The update and the source of a reward model; ValueError for a model without one score."""
    config, rules = setup.config, setup.config.reward
    check(setup)
    source = source_of(setup, pair_rows(setup, rules, config.data.split, config.seed, config.data.prefetch))
    measures = held_out_metrics(setup) if config.eval.loss_batches else None
    return Algorithm(update(setup), source, evaluation=EvaluationSpec(measures=measures, answers=False))


def update(setup: Setup) -> Update:
    """What is minimised, on pairs as long as they may be."""
    rules = setup.config.reward
    shapes = batch_shapes(setup, rules, 2, reference=False)
    return Update(reward_objective(setup.model, rules), shapes, pair_plan(setup, rules, 2))


def check(setup: Setup) -> None:
    """Raises ValueError unless the model gives one score."""
    size = setup.model.config.score.size
    if size != 1:
        raise ValueError(f"algorithm=reward learns one score of a text: set model.score.size=1, found {size}")


def source_of(setup: Setup, rows: PairRows) -> PairSource:
    """Pairs of a split; ends that the model passes over are left out."""
    pad = setup.model.config.score.pad
    return PairSource(setup, rows, plan=pair_plan(setup, setup.config.reward, 2), pad_id=pad)


def reward_objective(model: Model, rules: RewardModelConfig) -> Objective:
    """`bradley_terry` over pairs of rows."""

    def objective(params: Params, batch: PairBatch, key: jax.Array) -> Loss:
        del key
        states, out = end_states(model, params, batch)
        scores = model.scores(params, states)[:, 0]
        margin = batch.margin[0::2] if rules.margins else None
        return add_auxiliary_losses(bradley_terry(scores[0::2], scores[1::2], margin, rules.center), out.reports)

    return objective


def held_out_metrics(setup: Setup) -> Callable[[Params], dict[str, float]]:
    """Accuracy, loss, margin and calibration on the first `eval.loss_batches` batches of pairs of `eval.split`."""
    rules, count = setup.config.reward, setup.config.eval.loss_batches
    source = source_of(setup, pair_rows(setup, rules, setup.config.eval.split, 0, 0))
    start, plan = source.state(), pair_plan(setup, rules, 2)
    run = jax.jit(lambda params, batch: scores_of(setup.model, params, batch, plan))

    def measure(params: Params) -> dict[str, float]:
        source.restore(start)
        batches = (on_devices(source.next(params, 0), setup.mesh, whole=False) for _ in range(count))
        return pair_metrics(np.concatenate([np.asarray(run(params, batch)).reshape(-1, 2) for batch in batches]))

    return measure


def scores_of(model: Model, params: Params, batch: PairBatch, plan: UpdatePlan) -> jax.Array:
    """The score [N] of every row, micro-batch by micro-batch."""

    def measure(params: Params, part: PairBatch) -> tuple[jax.Array]:
        states, _ = end_states(model, params, part)
        return (model.scores(params, states)[:, :1],)

    return replicate(per_token(measure, params, batch, plan)[0][:, 0])


def pair_metrics(scores: np.ndarray) -> dict[str, float]:
    """What scores [N, 2] of chosen and rejected sides tell: a tie is wrong; `calibration_error` is the expected one of
    the probabilities sigmoid(|difference|) that the higher score is right, in 10 bins from .5 to 1.
    """
    apart = (scores[:, 0] - scores[:, 1]).astype(np.float64)
    sure = 1 / (1 + np.exp(-np.abs(apart)))
    right = apart > 0
    place = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [place == n for n in range(BINS) if (place == n).any()]
    gaps = [abs(sure[inside].mean() - right[inside].mean()) * inside.mean() for inside in bins]
    return {
        "accuracy": float(right.mean()),
        "loss": float(np.logaddexp(0, -apart).mean()),
        "margin": float(apart.mean()),
        "mean_reward": float(scores.mean()),
        "calibration_error": float(sum(gaps)),
    }
