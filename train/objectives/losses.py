"""Objectives: what a batch says of parameters, as an unreduced sum and its denominator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.latent import Feedback, think
from model.lm import Model, Output, Params
from model.mtp import look_ahead
from model.prefix import continue_from, prefill
from train.objectives.logps import token_logps

Batch = dict[str, Any]
Metrics = dict[str, Any]
Loss = tuple[jax.Array, jax.Array, Metrics]
Objective = Callable[[Params, Batch, jax.Array], Loss]


def next_token_mask(batch: Batch) -> jax.Array:
    """Which positions predict a wanted token of their own segment: [B, S - 1] fp32."""
    segments = batch["segments"]
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return batch["mask"][:, 1:] * same


def batch_logps(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    temperature: float = 1.0,
    start: int = 0,
    train: bool = False,
    key: jax.Array | None = None,
    depth: Any = None,
    first: int | None = None,
    after: int = 1,
    feedback: Feedback | None = None,
) -> tuple[jax.Array, jax.Array, Output]:
    """Log-probs and entropies of tokens start+1 .. S-1 of each row under softmax(logits / temperature).

    Returns two arrays [B, S - 1 - start] and the model's output; `start` skips a part (a prompt) that needs no head.
    A batch with `routes` replays these choices of experts, one with `depth` [B] these iterations of a recurrent core;
    else `depth` and `key` are `apply`'s.
    A batch with `latent` [B, n] has thoughts in the n columns from `first` (None: those that end `after` columns
    before column `start` + 1), where it is true; `feedback` is `think`'s.
    Where prompts stand apart (`prompt`, or `prefix` once they were read: model/prefix.py), rows hold completions alone,
    and all their tokens count; `start` and what follows it then do not matter.
    """
    if "prompt" in batch or "prefix" in batch:
        prefix = batch["prefix"] if "prefix" in batch else prefill(model, params, batch["prompt"], after=after)
        out = continue_from(model, params, prefix, batch)
        return *_head(model, params, out.hidden, batch["tokens"], temperature), out
    options = {"depth": batch.get("depth", depth), "key": key, "train": train}
    options |= {"routes": batch["routes"]} if "routes" in batch else {}
    latent, width = batch.get("latent", jnp.zeros((1, 0), bool)), batch["tokens"].shape[1]
    thoughts = latent.shape[1]
    begin = start + 1 - after - thoughts if first is None else first
    if thoughts and begin < 1:
        raise ValueError(
            f"{thoughts} thoughts in the columns before start={start}: give `first`, the column of the first"
        )
    # The loop of a recurrent core over a cache has no gradient.
    column = begin if thoughts and model.config.depth != "recurrent" else None
    whole = jnp.pad(latent, ((0, 0), (begin, width - begin - thoughts)))
    shown = {**batch, "latent": whole}
    out = think(model, params, shown, thoughts=thoughts, first=column, feedback=feedback, **options)
    return *_head(model, params, out.hidden[:, start:-1], batch["tokens"][:, start + 1 :], temperature), out


def _head(
    model: Model, params: Params, hidden: jax.Array, targets: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    return token_logps(hidden, model.head(params), targets, model.config.logit_scale / temperature)


def add_auxiliary_losses(loss: Loss, aux: dict[str, jax.Array], prefix: str = "") -> Loss:
    """Adds what the layers report: terms of the objective (means, hence times the count), and sums for the rules.

    With micro-batches the terms are those of each micro-batch, weighted by its count.
    """
    total, count, metrics = loss
    sums = {prefix + name: value for name, value in aux.items() if not name.endswith("_loss")}
    terms = {prefix + name: value.sum() for name, value in aux.items() if name.endswith("_loss")}
    metrics = metrics | {name: (count * value, count) for name, value in terms.items()}
    if sums:
        metrics["sums"] = metrics.get("sums", {}) | sums
    return total + count * sum(terms.values()), count, metrics


def sft_objective(model: Model) -> Objective:
    """Cross entropy of the wanted tokens: the sum over tokens and the number of tokens."""

    def objective(params: Params, batch: Batch, key: jax.Array) -> Loss:
        loss, out = cross_entropy(model, params, batch, key)
        loss = add_auxiliary_losses(loss, out.aux)
        return with_predictions_ahead(loss, model, params, batch, out.hidden) if model.config.mtp.depth else loss

    return objective


def cross_entropy(model: Model, params: Params, batch: Batch, key: jax.Array, **thinking: Any) -> tuple[Loss, Output]:
    """The sum over the wanted tokens of a training batch, and the model's output; `thinking`: see `batch_logps`."""
    logps, entropies, out = batch_logps(model, params, batch, train=True, key=key, **thinking)
    mask = next_token_mask(batch)
    count, total = mask.sum(), -(logps * mask).sum()
    return (total, count, {"loss": (total, count), "entropy": ((entropies * mask).sum(), count)}), out


def with_predictions_ahead(loss: Loss, model: Model, params: Params, batch: Batch, hidden: jax.Array) -> Loss:
    """Adds weight / D x the sum over D modules of their cross entropies (DeepSeek-V3, 2412.19437, equations 24-25).

    Each is a sum over the wanted tokens that it can predict, but divided by the count of all, as in the paper.
    """
    config, (total, count, metrics) = model.config, loss
    tokens, positions, segments = batch["tokens"], batch["positions"], batch["segments"]
    outputs = model.predict_ahead(params, hidden, tokens, positions, segments, train=True)
    for k, out in enumerate(outputs):
        targets, inside = look_ahead(tokens, segments, k + 2)
        mask = (inside > 0) * look_ahead(batch["mask"], segments, k + 2)[0]
        logps, _ = token_logps(out.hidden, model.head(params), targets, config.logit_scale)
        missed = -(logps * mask).sum()
        total = total + config.mtp.weight / config.mtp.depth * missed
        metrics = metrics | {f"mtp/loss_{k + 1}": (missed, mask.sum())}
    together = {name: jnp.concatenate([out.aux[name] for out in outputs]) for name in outputs[0].aux}
    return add_auxiliary_losses((total, count, metrics), together, "mtp/")
