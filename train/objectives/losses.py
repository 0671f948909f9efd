"""Objectives: what a batch says of parameters, as an unreduced sum and its denominator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data.sources.batch import TokenRows
from model.latent import Columns, Feedback, think
from model.lm import Model, Output, Params
from model.mtp import look_ahead
from model.reports import Reports
from model.rules import RuleReports
from train.objectives.logps import token_logps
from train.objectives.metrics import Metrics

Loss = tuple[jax.Array, jax.Array, Metrics]
Objective = Callable[[Params, Any, jax.Array], Loss]  # of the kind of batch that its source yields


def next_token_mask(batch: TokenRows) -> jax.Array:
    """Which positions predict a wanted token of their own segment: [B, S - 1] fp32."""
    segments = batch.segments
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return batch.mask[:, 1:] * same


def batch_logps(
    model: Model,
    params: Params,
    batch: TokenRows,
    *,
    temperature: float = 1.0,
    feedback: Feedback | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array, Output]:
    """Log-probs and entropies of tokens 1 .. S-1 of each row under softmax(logits / temperature): two arrays
    [B, S - 1]; and the model's output. `feedback` and `options` are those of `read_rows`.
    """
    out = read_rows(model, params, batch, feedback, **options)
    return *target_logps(model, params, out.hidden[:, :-1], batch.tokens[:, 1:], temperature), out


def read_rows(
    model: Model, params: Params, batch: TokenRows, feedback: Feedback | None = None, **options: Any
) -> Output:
    """One pass over rows, with their thoughts, depths and routes where they have any.

    `feedback` is `think`'s (model/latent.py); `options` go to `model.apply`: key, train, and depth where the batch has
    none of its own.
    """
    thoughts, width = batch.thoughts, batch.columns
    options["depth"] = options.get("depth") if batch.depth is None else batch.depth
    if batch.routes is not None:
        options["routes"] = batch.routes
    if thoughts and batch.first < 1:
        raise ValueError(f"{thoughts} thoughts in the columns from first={batch.first}: no state comes before them")
    # The loop of a recurrent core over a cache has no gradient.
    column = batch.first if thoughts and model.config.depth != "recurrent" else None
    latent = jnp.zeros((1, 0), bool) if batch.latent is None else batch.latent
    latent = jnp.pad(latent, ((0, 0), (batch.first, width - batch.first - thoughts)))
    columns = Columns(batch.tokens, batch.positions, batch.segments, latent)
    return think(model, params, columns, thoughts=thoughts, first=column, feedback=feedback, **options)


def target_logps(
    model: Model, params: Params, hidden: jax.Array, targets: jax.Array, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of `targets` [B, T] and entropies where `hidden` [B, T, D] predicts them, at a temperature."""
    return token_logps(hidden, model.head(params), targets, model.config.logit_scale / temperature)


def add_auxiliary_losses(loss: Loss, reports: Reports, ahead: bool = False) -> Loss:
    """Adds what the layers report: terms of the objective (means, hence times the count), and what the rules read.

    `ahead`: of the modules of multi-token prediction. With micro-batches the terms are those of each micro-batch,
    weighted by its count.
    """
    total, count, metrics = loss
    prefix = "mtp/" if ahead else ""
    terms = {f"{prefix}{name}_loss": value.sum() for name, value in reports.losses.items()}
    metrics = metrics | {name: (count * value, count) for name, value in terms.items()}
    if reports.sums or reports.means or reports.work is not None:
        summed = Reports(sums=reports.sums, means=reports.means, work=reports.work)
        together = metrics.get("sums", RuleReports())
        metrics["sums"] = dataclasses.replace(together, **{"ahead" if ahead else "stack": summed})
    return total + count * sum(terms.values()), count, metrics


def sft_objective(model: Model) -> Objective:
    """Cross entropy of the wanted tokens: the sum over tokens and the number of tokens."""

    def objective(params: Params, batch: TokenRows, key: jax.Array) -> Loss:
        loss, out = cross_entropy(model, params, batch, key)
        loss = add_auxiliary_losses(loss, out.reports)
        return with_predictions_ahead(loss, model, params, batch, out.hidden) if model.config.mtp.depth else loss

    return objective


def cross_entropy(
    model: Model, params: Params, batch: TokenRows, key: jax.Array, feedback: Feedback | None = None, **options: Any
) -> tuple[Loss, Output]:
    """The sum over the wanted tokens of a training batch, and the model's output; `feedback` and `options`: see
    `read_rows`.
    """
    logps, entropies, out = batch_logps(model, params, batch, train=True, key=key, feedback=feedback, **options)
    mask = next_token_mask(batch)
    count, total = mask.sum(), -(logps * mask).sum()
    return (total, count, {"loss": (total, count), "entropy": ((entropies * mask).sum(), count)}), out


def with_predictions_ahead(loss: Loss, model: Model, params: Params, batch: TokenRows, hidden: jax.Array) -> Loss:
    """Adds weight / D x the sum over D modules of their cross entropies (DeepSeek-V3, 2412.19437, equations 24-25).

    Each is a sum over the wanted tokens that it can predict, but divided by the count of all, as in the paper.
    """
    config, (total, count, metrics) = model.config, loss
    tokens, positions, segments = batch.tokens, batch.positions, batch.segments
    outputs = model.predict_ahead(params, hidden, tokens, positions, segments, train=True)
    for k, out in enumerate(outputs):
        targets, inside = look_ahead(tokens, segments, k + 2)
        mask = (inside > 0) * look_ahead(batch.mask, segments, k + 2)[0]
        logps, _ = token_logps(out.hidden, model.head(params), targets, config.logit_scale)
        missed = -(logps * mask).sum()
        total = total + config.mtp.weight / config.mtp.depth * missed
        metrics = metrics | {f"mtp/loss_{k + 1}": (missed, mask.sum())}
    modules = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *(out.reports for out in outputs))
    return add_auxiliary_losses((total, count, metrics), modules, ahead=True)
