"""One model of several: the average of their parameters, or what each learnt added to a base."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infer.load import Origin
from model.lm import Params
from store.checkpoint import Checkpoints
from train.console import Interrupt
from train.evaluation import Evaluator
from train.jobs.base import Job
from train.setup import Setup
from train.state import make_state
from train.teacher import difference


def run(setup: Setup, interrupt: Interrupt) -> dict[str, float]:
    """Writes a checkpoint of the merged parameters, and measures them where `config.eval` says so."""
    del interrupt
    rules, config = setup.config.merge, setup.config
    models = [setup.open(folder) for folder in rules.models]
    whole = merged([origin.params(setup.mesh) for origin in models], rules.weights)
    if rules.how == "task_vectors":
        weights = rules.weights or (1.0,) * len(models)
        base = setup.make_params()
        whole = added(base, [origin.params(setup.mesh) for origin in models], weights)
    state = make_state(lambda: whole, setup.optimizer, config, setup.mesh, setup.rows)
    checkpoints = Checkpoints(setup.workdir, say=setup.say)
    checkpoints.save(state, {})
    checkpoints.close()
    metrics, _ = Evaluator(setup)(state.params, 0)
    return metrics


def merged(models: Sequence[Params], weights: Sequence[float] = ()) -> Params:
    """The average of trees of parameters, in float32, as wide as they were: model soups (2203.05482)."""
    shares = [weight / sum(weights) for weight in weights] if weights else [1 / len(models)] * len(models)

    def mean(*leaves: jax.Array) -> jax.Array:
        total = sum(share * leaf.astype(jnp.float32) for share, leaf in zip(shares, leaves, strict=True))
        return jnp.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(mean, *models)


def added(base: Params, models: Sequence[Params], weights: Sequence[float]) -> Params:
    """base + sum of weight x (model - base), in float32: task arithmetic (2212.04089)."""

    def sum_of(start: jax.Array, *leaves: jax.Array) -> jax.Array:
        whole = start.astype(jnp.float32)
        moved = sum(weight * (leaf.astype(jnp.float32) - whole) for weight, leaf in zip(weights, leaves, strict=True))
        return (whole + moved).astype(start.dtype)

    return jax.tree.map(sum_of, base, *models)


def check(setup: Setup) -> None:
    """Raises ValueError for fewer than two models, and for models of other shapes or another vocabulary."""
    rules = setup.config.merge
    if len(rules.models) < (1 if rules.how == "task_vectors" else 2):
        raise ValueError(f"merge.models names {len(rules.models)} models: give two or more (task vectors: one)")
    for folder in rules.models:
        _check_alike(setup, folder, setup.open(folder))


def _check_alike(setup: Setup, folder: str, origin: Origin) -> None:
    own, theirs = (jax.tree.map(lambda x: x.shape, model.abstract()) for model in (setup.model, origin.model))
    if own != theirs:
        raise ValueError(
            f"merge.models: {folder} has parameters of other names or shapes than init_from={setup.config.init_from}:"
            " only models of one architecture can be added up"
        )
    if wrong := difference(setup.tokenizer, origin.tokenizer()):
        raise ValueError(f"merge.models: {folder} has another vocabulary: {wrong}")


JOB = Job(run, check)
