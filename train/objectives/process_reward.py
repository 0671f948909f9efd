"""Process reward models: a class for every step of a solution (2305.20050), learnt from labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.steps import StepRows, StepRules, step_source
from model.lm import Model, Params
from train.accumulate import UpdatePlan, accumulate
from train.batches import on_devices
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, read_rows
from train.objectives.metrics import finish
from train.objectives.reward_losses import step_cross_entropy
from train.objectives.sft import rows_of_host
from train.setup import Algorithm, EvaluationSpec, Setup, Source, Update


def build(setup: Setup) -> Algorithm:
    """The update and the source of a process reward model; ValueError for a model of fewer than two scores."""
    config = setup.config
    if setup.model.config.score.size < 2:
        raise ValueError(
            "algorithm=process_reward learns a class for each step: set model.score.size to their number, 2 or more;"
            f" found {setup.model.config.score.size}"
        )
    source = source_of(setup, config.data.split, config.seed, config.data.prefetch)
    measures = held_out_metrics(setup) if config.eval.loss_batches else None
    return Algorithm(update(setup), source, evaluation=EvaluationSpec(measures=measures, answers=False))


def update(setup: Setup) -> Update:
    """What is minimised, on rows of solutions."""
    config = setup.config
    shape = (config.data.batch_size, min(config.data.length, setup.model.config.max_length))
    integers, numbers = (jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.float32))
    batch = StepRows(tokens=integers, mask=numbers, positions=integers, segments=integers, labels=integers)
    return Update(process_objective(setup.model), batch, UpdatePlan(micro_batch=config.micro_batch or None))


def source_of(setup: Setup, split: str, seed: int, prefetch: int) -> Source:
    """Solutions of a split, this host's share of `data.batch_size` rows."""
    data, rules = setup.config.data, setup.config.reward
    return step_source(
        setup.task,
        setup.tokenizer,
        StepRules(
            **rows_of_host(setup),
            split=split,
            seed=seed,
            template=data.template,
            system=data.system or None,
            too_long=data.too_long,
            prefetch=prefetch,
            separator=rules.separator,
            last_step_only=rules.last_step_only,
        ),
    )


def process_objective(model: Model) -> Objective:
    """Cross entropy of the classes of steps."""

    def objective(params: Params, batch: StepRows, key: jax.Array) -> Loss:
        out = read_rows(model, params, batch, train=True, key=key)
        loss = step_cross_entropy(model.scores(params, out.hidden), batch.labels)
        return add_auxiliary_losses(loss, out.reports)

    return objective


def held_out_metrics(setup: Setup) -> Callable[[Params], dict[str, float]]:
    """Loss and accuracy on the first `eval.loss_batches` batches of `eval.split`."""
    count, objective = setup.config.eval.loss_batches, process_objective(setup.model)
    source = source_of(setup, setup.config.eval.split, 0, 0)
    start = source.state()
    run = jax.jit(lambda params, batch: finish(accumulate(objective, params, batch, jax.random.key(0)).metrics))

    def measure(params: Params) -> dict[str, float]:
        source.restore(start)
        batches = (on_devices(source.next(params, 0), setup.mesh, whole=False) for _ in range(count))
        found: list[dict[str, Any]] = [jax.device_get(run(params, batch)) for batch in batches]
        return {name: float(np.mean([each[name] for each in found])) for name in ("loss", "accuracy")}

    return measure
