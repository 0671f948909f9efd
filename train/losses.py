"""Log-probabilities and entropies without ever holding [B, S, V], and the objectives built on them.

The head is applied in blocks of time x vocabulary. The forward pass keeps three numbers per token; the backward pass
recomputes each block of logits and turns it into gradients at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.latent import Feedback, think
from model.lm import Model, Output, Params
from model.mtp import look_ahead
from model.prefix import read, resume

Batch = dict[str, Any]
Metrics = dict[str, Any]
Loss = tuple[jax.Array, jax.Array, Metrics]
Objective = Callable[[Params, Batch, jax.Array], Loss]

TIME_BLOCK = 2048
VOCAB_BLOCK = 8192


def token_logps(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    scale: float | jax.Array = 1.0,
    blocks: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-prob of each target and entropy of its distribution, softmax(scale * hidden @ head.T).

    hidden [..., D], head [V, D], targets [...] -> two fp32 arrays [...]. `blocks` = (time, vocabulary) block sizes.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    time, vocab = blocks or (TIME_BLOCK, VOCAB_BLOCK)
    sizes = (min(time, flat.shape[0]), min(vocab, head.shape[0]))
    # Weights are cast outside the custom rule, so that their gradient arrives in the parameter's own dtype.
    logps, entropies = _blocked(flat, head.astype(flat.dtype), targets.reshape(-1), jnp.float32(scale), sizes)
    return logps.reshape(targets.shape), entropies.reshape(targets.shape)


def _starts(length: int, block: int) -> jax.Array:
    return jnp.arange(-(-length // block)) * block


def _slice(x: jax.Array, start: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Rows start .. start+block of x, the last block moved back to fit; and which rows are not repeats."""
    begin = jnp.minimum(start, x.shape[0] - block)
    rows = jax.lax.dynamic_slice_in_dim(x, begin, block)
    return rows, begin + jnp.arange(block) >= start


def _loop(length: int, block: int, body: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
    """Runs body(start, carry) over the blocks; a single block needs no loop."""
    if length <= block:
        return body(jnp.int32(0), carry)
    return jax.lax.fori_loop(0, -(-length // block), lambda i, c: body(i * block, c), carry)


def _put(x: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    begin = jnp.minimum(start, x.shape[0] - rows.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(x, rows, begin, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    return _forward(hidden, head, targets, scale, sizes)[0]


def _forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: jax.Array, sizes: tuple[int, int]
) -> tuple[Any, Any]:
    (N, _), V = hidden.shape, head.shape[0]
    time, vocab = sizes

    def vocab_block(start: jax.Array, carry: Any, rows: jax.Array, wanted: jax.Array) -> Any:
        top, total, weighted, chosen = carry
        weights, fresh = _slice(head, start, vocab)
        z = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32)
        z = jnp.where(fresh, z, -jnp.inf)
        new_top = jnp.maximum(top, z.max(-1))
        shrink, e = jnp.exp(top - new_top), jnp.exp(z - new_top[:, None])
        column = wanted - jnp.minimum(start, V - vocab)
        here = (column >= 0) & (column < vocab) & (wanted >= start)
        picked = jnp.take_along_axis(z, jnp.clip(column, 0, vocab - 1)[:, None], 1)[:, 0]
        weighted = weighted * shrink + jnp.sum(e * jnp.where(fresh, z, 0.0), -1)
        return new_top, total * shrink + e.sum(-1), weighted, jnp.where(here, picked, chosen)

    def time_block(start: jax.Array, carry: Any) -> Any:
        rows, _ = _slice(hidden, start, time)
        wanted, _ = _slice(targets, start, time)
        zero = jnp.zeros((time,), jnp.float32)
        body = functools.partial(vocab_block, rows=rows, wanted=wanted)
        top, total, weighted, chosen = _loop(V, vocab, body, (zero - jnp.inf, zero, zero, zero))
        lse = top + jnp.log(total)
        return tuple(
            _put(x, new, start) for x, new in zip(carry, (chosen - lse, lse - weighted / total, lse), strict=True)
        )

    logps, entropies, lse = _loop(N, time, time_block, (jnp.zeros((N,), jnp.float32),) * 3)
    return (logps, entropies), (hidden, head, targets, scale, lse, entropies)


def _backward(sizes: tuple[int, int], saved: Any, gradients: tuple[jax.Array, jax.Array]) -> Any:
    """dz = g_logp (onehot - p) - g_entropy p (log p + H), block by block; the scale is a constant."""
    hidden, head, targets, scale, lse, entropies = saved
    (N, _), V = hidden.shape, head.shape[0]
    time, vocab = sizes
    per_token = (targets, lse, entropies, *gradients)

    def vocab_block(start: jax.Array, carry: Any, rows: jax.Array, columns: Any, fresh_rows: jax.Array) -> Any:
        d_rows, d_head = carry
        wanted, row_lse, row_entropy, g_logp, g_entropy = columns
        weights, fresh = _slice(head, start, vocab)
        begin = jnp.minimum(start, V - vocab)
        logp = scale * jnp.einsum("nd,vd->nv", rows, weights, preferred_element_type=jnp.float32) - row_lse[:, None]
        p = jnp.exp(logp)
        onehot = (wanted[:, None] - begin) == jnp.arange(vocab)
        dz = g_logp[:, None] * (onehot - p) - g_entropy[:, None] * p * (logp + row_entropy[:, None])
        dz = (scale * dz * fresh * fresh_rows[:, None]).astype(rows.dtype)
        d_rows = d_rows + jnp.einsum("nv,vd->nd", dz, weights, preferred_element_type=jnp.float32)
        old, _ = _slice(d_head, start, vocab)
        return d_rows, _put(d_head, old + jnp.einsum("nv,nd->vd", dz, rows, preferred_element_type=jnp.float32), start)

    def time_block(start: jax.Array, carry: Any) -> Any:
        d_hidden, d_head = carry
        rows, fresh_rows = _slice(hidden, start, time)
        columns = tuple(_slice(x, start, time)[0] for x in per_token)
        body = functools.partial(vocab_block, rows=rows, columns=columns, fresh_rows=fresh_rows)
        d_rows, d_head = _loop(V, vocab, body, (jnp.zeros(rows.shape, jnp.float32), d_head))
        old, _ = _slice(d_hidden, start, time)
        return _put(d_hidden, old + d_rows.astype(hidden.dtype), start), d_head

    start = (jnp.zeros_like(hidden), jnp.zeros(head.shape, jnp.float32))
    d_hidden, d_head = _loop(N, time, time_block, start)
    return d_hidden, d_head.astype(head.dtype), None, jnp.zeros_like(scale)


_blocked.defvjp(_forward, _backward)


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
        prefix = batch["prefix"] if "prefix" in batch else read(model, params, batch["prompt"], after=after)
        out = resume(model, params, prefix, batch)
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


def with_reports(loss: Loss, aux: dict[str, jax.Array], prefix: str = "") -> Loss:
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
        loss = with_reports(loss, out.aux)
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
    return with_reports((total, count, metrics), together, "mtp/")
