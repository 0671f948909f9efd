"""Learning when to stop: every iteration of a recurrent core predicts, weighed by a learnt gate (Ouro, 2510.25741)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from data.sources.batch import TokenRows
from model.lm import Model, Output, Params
from model.reports import Reports
from train.objectives.logps import token_logps
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, next_token_mask, read_rows


def exit_distribution(logits: jax.Array) -> jax.Array:
    """Log-probabilities of stopping after each iteration: gate logits [T, ...] -> [T, ...]; the last takes the rest.

    p_t = sigmoid(z_t) prod_{j < t} (1 - sigmoid(z_j)).
    """
    stays = jnp.cumsum(jax.nn.log_sigmoid(-logits[:-1]), 0)
    stays = jnp.concatenate([jnp.zeros_like(logits[:1]), stays])
    stops = jnp.concatenate([jax.nn.log_sigmoid(logits[:-1]), jnp.zeros_like(logits[:1])])
    return stays + stops


def _together(reports: list[Reports]) -> Reports:
    """One report of all iterations: sums and work add, terms of the objective are means."""
    whole = jax.tree.map(lambda *values: jnp.stack(values), *reports)
    losses = jax.tree.map(lambda values: values.mean(0), whole.losses)
    sums, means, work = jax.tree.map(lambda values: values.sum(0), (whole.sums, whole.means, whole.work))
    # Each pass counted its rows: the rows are the same, their iterations add up.
    means["depth"] = means["depth"] / jnp.array([1, len(reports)])
    return Reports(losses, sums, means, work)


def iterated(
    model: Model, params: Params, batch: TokenRows, iterations: Iterable[int], **options: Any
) -> Iterator[Output]:
    """The model's output on rows after each of these numbers of iterations, rising; each goes on from the one before.

    `options` go to `read_rows`. All iterations carry gradient.
    """
    state, before = None, 0
    for depth in iterations:
        out = read_rows(model, params, batch, depth=depth - before, state=state, **options)
        state, before = out.state, depth
        yield out


def loop_objective(model: Model) -> Objective:
    """Cross entropy after each of `recurrent.mean` iterations, weighed by the chance to stop there, less its entropy.

    Section 3 of the paper, stage I: sum_t p_t CE_t - exit_entropy H(p), token by token. Metrics: `loss` of the last
    iteration, `exit/loss_<t>`, and the mean iteration at which the gate would stop.
    """
    config = model.config.recurrent

    def objective(params: Params, batch: TokenRows, key: jax.Array) -> Loss:
        missed, gates, reports = [], [], []
        scale, targets = model.config.logit_scale, batch.tokens[:, 1:]
        for out in iterated(model, params, batch, range(1, config.mean + 1), key=key, train=True):
            missed.append(-token_logps(out.hidden[:, :-1], model.head(params), targets, scale)[0])
            gates.append(model.exit_logits(params, out.hidden[:, :-1]))
            reports.append(out.reports)
        mask, logp = next_token_mask(batch), exit_distribution(jnp.stack(gates))
        p, losses = jnp.exp(logp), jnp.stack(missed)
        entropy = -(p * logp).sum(0)
        total, count = ((p * losses).sum(0) - config.exit_entropy * entropy) * mask, mask.sum()
        steps = (p * jnp.arange(1, config.mean + 1)[:, None, None]).sum(0)
        metrics = {
            "loss": ((losses[-1] * mask).sum(), count),
            "exit/entropy": ((entropy * mask).sum(), count),
            "exit/iteration": ((steps * mask).sum(), count),
            **{f"exit/loss_{t + 1}": ((loss * mask).sum(), count) for t, loss in enumerate(losses)},
        }
        return add_auxiliary_losses((total.sum(), count, metrics), _together(reports))

    return objective
