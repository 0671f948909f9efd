"""What goes in at a thought besides the state itself: mixtures of tokens, and noise by which samples differ.

A soft thought (Latent-GRPO, 2604.27998) is a mixture of the embeddings of the K likeliest tokens. With noise on their
log-probs it is drawn like a token, and has a density; a dropped-out thought (Dropout-GRPO, 2606.10184) is the state
under one mask for all thoughts of a sample. Both come from a seed of the sample's own, so that an update can replay
them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infer.drawing import NEVER, truncate
from infer.sampling import Truncation
from infer.thoughts import QUIET, ThoughtNoise
from model.embedding import embed_tokens
from model.latent import Fed, Feedback, mapped
from model.lm import Model, Params
from settings.data import SoftConfig

LOW, HIGH = -1.5, 3.0  # between which Gumbel noise is kept (2604.27998, published code)
SEEDED = 1 << 30  # folded into a sample's key for its thoughts: its tokens fold in their own numbers


class Choice(NamedTuple):
    """The K tokens of soft thoughts: `ids`, the `scores` that they were taken by, highest first, and the model's
    `logps`: three arrays [..., K].
    """

    ids: jax.Array
    scores: jax.Array
    logps: jax.Array


def choose(logits: jax.Array, rules: SoftConfig, noise: jax.Array | None = None) -> Choice:
    """The K tokens of the highest log-prob plus noise [..., V], among the likeliest K and those of the top-p set."""
    logps = jax.nn.log_softmax(logits.astype(jnp.float32))
    count = min(rules.soft_tokens, logits.shape[-1])
    if noise is None:
        scores, ids = jax.lax.top_k(logps, count)
        return Choice(ids, scores, scores)
    inside = truncate(logps, Truncation(top_p=rules.soft_top_p)) > NEVER / 2
    inside |= logps >= jax.lax.top_k(logps, count)[0][..., -1:]
    scores, ids = jax.lax.top_k(jnp.where(inside, logps + noise, NEVER), count)
    return Choice(ids, scores, jnp.take_along_axis(logps, ids, -1))


def mix(model: Model, params: Params, ids: jax.Array, scores: jax.Array, rules: SoftConfig) -> jax.Array:
    """The embeddings [B, S, D] of tokens [B, S, K], weighed by the softmax of their scores / soft_temperature."""
    weights = jax.nn.softmax(scores / rules.soft_temperature)
    each = embed_tokens(model.config, params, ids.reshape(len(ids), -1)).reshape(*ids.shape, -1)
    return (weights[..., None].astype(each.dtype) * each).sum(-2)


def gumbel(noise: ThoughtNoise, seeds: jax.Array, number: jax.Array, size: int) -> jax.Array:
    """Noise [B, size] for thought `number` of samples of these `seeds` [B]; one-sided it is never below 0."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(seeds)
    drawn = jnp.clip(jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys), LOW, HIGH)
    return noise.scale * (drawn - LOW if noise.kind == "one_sided" else drawn)


def dropout_masks(rate: float, seeds: jax.Array, width: int) -> jax.Array:
    """What states [B, width] are multiplied by: 0 with probability `rate`, else 1 / (1 - rate); one draw a sample."""
    kept = jax.vmap(lambda seed: jax.random.bernoulli(jax.random.key(seed), 1 - rate, (width,)))(seeds)
    return kept / (1 - rate)


def feedback_of(
    model: Model,
    params: Params,
    soft: SoftConfig | None,
    noise: ThoughtNoise = QUIET,
    seeds: jax.Array | None = None,
) -> Feedback | None:
    """What `model.latent.think` feeds back; None for the state as it is. `seeds` [B] of noise that is not quiet."""
    if noise.dropout:
        assert seeds is not None
        masks = dropout_masks(noise.dropout, seeds, model.config.d_model)[:, None]
        return mapped(lambda states: states * masks.astype(states.dtype))
    if soft is None:
        return None

    def feedback(states: jax.Array, number: jax.Array) -> Fed:
        logits = model.logits(params, states)
        drawn = None if seeds is None else gumbel(noise, seeds, number, logits.shape[-1])[:, None]
        choice = choose(logits, soft, drawn)
        return Fed(mix(model, params, choice.ids, choice.scores, soft), choice)

    return feedback


def thought_seeds(key: jax.Array, numbers: np.ndarray) -> np.ndarray:
    """The seeds [N] uint32 of the thoughts of samples of these numbers [N], as `generate` draws them."""
    seed = lambda number: jax.random.bits(  # noqa: E731
        jax.random.fold_in(jax.random.fold_in(key, number), SEEDED), dtype=jnp.uint32
    )
    return np.asarray(jax.vmap(seed)(jnp.asarray(numbers, jnp.int32)))
