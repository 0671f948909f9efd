"""Learning from preferences (DPO and its kin): pairs of a better and a worse completion, and a frozen reference."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.pairs import PairRows
from model.lm import Model, Params
from settings.preference import WHOLE_BATCH, PreferenceConfig, PreferenceLossConfig
from train.accumulate import UpdatePlan, accumulate
from train.batches import on_devices
from train.completions import completion_logps, completion_states, joined_rows
from train.objectives.distillation_losses import log_sum_squares
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, batch_logps, target_logps
from train.objectives.metrics import finish
from train.objectives.pairs import PairBatch, PairSource, batch_shapes, pair_plan, pair_rows
from train.objectives.preference_losses import Side, preference_loss
from train.setup import Algorithm, EvaluationSpec, Setup, Update


def build(setup: Setup) -> Algorithm:
    """The update and the source of a run that learns preferences; the reference is the model it starts from."""
    config, rules = setup.config, setup.config.preference
    check(setup)
    source = source_of(setup, pair_rows(setup, rules, config.data.split, config.seed, config.data.prefetch))
    measures = held_out_metrics(setup) if config.eval.loss_batches else None
    return Algorithm(update(setup), source, evaluation=EvaluationSpec(measures=measures))


def update(setup: Setup) -> Update:
    """What is minimised, on pairs as long as they may be."""
    rules = setup.config.preference
    shapes = batch_shapes(setup, rules, rules.rows_per_pair, rules.reference)
    return Update(preference_objective(setup.model, rules), shapes, plan_of(setup, rules))


def plan_of(setup: Setup, rules: PreferenceConfig) -> UpdatePlan:
    """Losses over prompts read whole rows."""
    return pair_plan(setup, rules, rules.rows_per_pair, whole=rules.nll_prompt)


def check(setup: Setup) -> None:
    """Raises ValueError for losses of a whole batch in micro-batches."""
    config = setup.config
    coupled = [form for form in config.preference.loss if form in WHOLE_BATCH]
    if coupled and config.micro_batch:
        raise ValueError(
            f"preference.loss={coupled[0]!r} compares the pairs of a batch with each other: micro_batch="
            f"{config.micro_batch} would change it; set it to 0"
        )


def source_of(setup: Setup, rows: PairRows) -> PairSource:
    """Pairs of a split, with what the reference says of them where the loss asks for it."""
    rules = setup.config.preference
    return PairSource(
        setup,
        rows,
        rows_per_pair=rules.rows_per_pair,
        plan=plan_of(setup, rules),
        reference=setup.make_params if rules.reference else None,
    )


def preference_objective(model: Model, rules: PreferenceLossConfig) -> Objective:
    """`preference_loss` over rows that belong together, pair by pair (train/objectives/pairs.py)."""

    def objective(params: Params, batch: PairBatch, key: jax.Array) -> Loss:
        del key
        prompt_nll, squares = None, None
        if rules.nll_prompt:
            rows, start = joined_rows(batch), batch.shared.tokens.shape[1] - 1
            logps, _, out = batch_logps(model, params, rows)
            told = (rows.segments[:, :-1] > 0)[:, :start] * _first_of(batch, rules)[:, None]
            prompt_nll = -(jnp.where(told, logps[:, :start], 0)).sum(), told.sum().astype(jnp.float32)
            logps = logps[:, start:]
        elif rules.weighted:
            hidden, out = completion_states(model, params, batch)
            logps, _ = target_logps(model, params, hidden, batch.tokens)
            squares = log_sum_squares((hidden, model.head(params), model.config.logit_scale))
        else:
            logps, _, out = completion_logps(model, params, batch)
        sides = _sides(batch, rules, logps, squares)
        mismatched = None if rules.rows_per_pair == 2 else _joined(sides[2:])
        loss = preference_loss(sides[0], sides[1], rules, mismatched=mismatched, prompt_nll=prompt_nll)
        return add_auxiliary_losses(loss, out.reports)

    return objective


def held_out_metrics(setup: Setup) -> Callable[[Params], dict[str, float]]:
    """The metrics of the loss on the first `eval.loss_batches` batches of pairs of `eval.split`, read in order."""
    rules, count = setup.config.preference, setup.config.eval.loss_batches
    source = source_of(setup, pair_rows(setup, rules, setup.config.eval.split, 0, 0))
    start, objective, plan = source.state(), preference_objective(setup.model, rules), plan_of(setup, rules)

    @jax.jit
    def measured(params: Params, batch: PairBatch) -> dict[str, jax.Array]:
        found = accumulate(objective, params, batch, jax.random.key(0), None, plan)
        return {**finish(found.metrics), "loss": found.total / found.count}

    def measure(params: Params) -> dict[str, float]:
        source.restore(start)
        batches = (on_devices(source.next(params, 0), setup.mesh, whole=False) for _ in range(count))
        found = [jax.device_get(measured(params, batch)) for batch in batches]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    return measure


def _first_of(batch: PairBatch, rules: PreferenceLossConfig) -> jax.Array:
    """Which rows [N] are the chosen sides."""
    return jnp.arange(batch.rows) % rules.rows_per_pair == 0


def _sides(batch: PairBatch, rules: PreferenceLossConfig, logps: jax.Array, squares: jax.Array | None) -> list[Side]:
    """The rows of a batch by what they are in their pair."""
    each = rules.rows_per_pair
    arrays = (logps, batch.mask, batch.ref_logps, squares)
    return [Side(*(None if x is None else x[n::each] for x in arrays)) for n in range(each)]  # type: ignore[arg-type]


def _joined(sides: list[Side]) -> Side:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *sides)
