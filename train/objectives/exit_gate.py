"""Learning when to stop: every iteration of a recurrent core predicts, weighed by a learnt gate (Ouro, 2510.25741).

Two stages: model and gate together (`exit_stage="joint"`), then the gate alone by what an iteration gains ("gate").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from data.sources.batch import TokenRows
from model.depth.exit import exit_distribution
from model.lm import Model, Output, Params
from model.reports import Reports
from settings.model import Architecture
from settings.model_parts import RecurrentConfig
from train.objectives.logps import token_logps
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, next_token_mask, read_rows

GATE = "exit_gate"  # the gate's parameters, by their name in the tree


class Iterations(NamedTuple):
    """What every iteration says of tokens 1 .. S-1 of each row: cross entropies and logits of the gate, [T, B, S - 1]
    each, and the reports of all iterations together.
    """

    losses: jax.Array
    gates: jax.Array
    reports: Reports


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


def gate_loss(losses: jax.Array, gates: jax.Array, config: RecurrentConfig) -> tuple[jax.Array, jax.Array]:
    """The gate's own loss, and how much each iteration asks to go on: [...] and [T - 1, ...] of [T, ...].

    Stage II of the paper (section 3): iteration t > 1 gains max(0, CE_(t-1) - CE_t), which is no target of the
    gradient; sigmoid(slope x (gain - margin)) is the wanted chance to go on, and the loss the binary cross entropy of
    1 - sigmoid(z_t), in the mean over these iterations.
    """
    gain = jnp.maximum(losses[:-1] - losses[1:], 0)
    wanted = jax.lax.stop_gradient(jax.nn.sigmoid(config.exit_slope * (gain - config.exit_margin)))
    stays, stops = jax.nn.log_sigmoid(-gates[1:]), jax.nn.log_sigmoid(gates[1:])
    return -(wanted * stays + (1 - wanted) * stops).mean(0), wanted


def learnt_alone(config: Architecture) -> tuple[str, ...]:
    """Patterns of the parameters that learn where the others are frozen: the gate in its own stage; () for all."""
    return (f"{GATE}/*",) if config.depth == "recurrent" and config.recurrent.exit_stage == "gate" else ()


def held(config: Architecture, params: Params) -> Params:
    """The parameters, all but those that learn alone as constants: no pass has to find their gradients."""
    if not learnt_alone(config):
        return params
    return {name: x if name == GATE else jax.lax.stop_gradient(x) for name, x in params.items()}


def learnt_from(config: Architecture, reports: Reports) -> Reports:
    """What is learnt from of what layers report: nothing, neither by losses nor by rule, where they are frozen."""
    return Reports(means=reports.means, work=reports.work) if learnt_alone(config) else reports


def read_iterations(model: Model, params: Params, batch: TokenRows, key: jax.Array, train: bool) -> Iterations:
    """`recurrent.mean` passes of one iteration, each from the state of the one before."""
    losses, gates, reports = [], [], []
    scale, targets = model.config.logit_scale, batch.tokens[:, 1:]
    for out in iterated(model, params, batch, range(1, model.config.recurrent.mean + 1), key=key, train=train):
        losses.append(-token_logps(out.hidden[:, :-1], model.head(params), targets, scale)[0])
        gates.append(model.exit_logits(params, out.hidden[:, :-1]))
        reports.append(out.reports)
    return Iterations(jnp.stack(losses), jnp.stack(gates), _together(reports))


def loop_objective(model: Model) -> Objective:
    """What a model with an exit gate learns by, after each of `recurrent.mean` iterations (section 3 of the paper).

    `exit_stage="joint"`, stage I: the cross entropies weighed by the chance to stop there, less the entropy of that,
    sum_t p_t CE_t - exit_entropy H(p), token by token. "gate", stage II: `gate_loss`, whose gradient is the gate's
    alone. Metrics: `loss` of the last iteration, `exit/loss_<t>`, the mean iteration at which the gate would stop, and
    in stage II `exit/wanted`, the mean chance to go on that is asked for.
    """
    config, alone = model.config.recurrent, learnt_alone(model.config)

    def objective(params: Params, batch: TokenRows, key: jax.Array) -> Loss:
        params = held(model.config, params)
        losses, gates, reports = read_iterations(model, params, batch, key, train=not alone)
        mask, logp = next_token_mask(batch), exit_distribution(gates)
        p, count = jnp.exp(logp), mask.sum()
        entropy = -(p * logp).sum(0)
        measured = {"loss": losses[-1], "exit/entropy": entropy}
        measured["exit/iteration"] = (p * jnp.arange(1, config.mean + 1)[:, None, None]).sum(0)
        measured |= {f"exit/loss_{t + 1}": loss for t, loss in enumerate(losses)}
        if alone:
            total, wanted = gate_loss(losses, gates, config)
            measured["exit/wanted"] = wanted.mean(0)
        else:
            total = (p * losses).sum(0) - config.exit_entropy * entropy
        metrics = {name: ((value * mask).sum(), count) for name, value in measured.items()}
        return add_auxiliary_losses(((total * mask).sum(), count, metrics), learnt_from(model.config, reports))

    return objective
