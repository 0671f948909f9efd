"""When a token has been thought about long enough: criteria for leaving a recurrence (2502.05171, section 6.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.initial import weights
from settings.model_parts import RecurrentConfig
from settings.setting import unknown


class Criterion(NamedTuple):
    """One criterion: its usual threshold, what it remembers at first, and a look.

    start(s [B, S, D], logits [B, V]) -> memory; look(memory, s, logits, real [B, S], threshold) -> (memory, leave [B]).
    Criteria of the output see its last column, those of the state the mean over the real columns.
    """

    threshold: float
    start: Callable[[jax.Array, jax.Array], Any]
    look: Callable[..., tuple[Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Exit:
    """Leave the recurrence by a criterion in CRITERIA at `threshold` (None: its usual one)."""

    criterion: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(unknown("exit criterion", self.criterion, CRITERIA))
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"an exit threshold must be positive, found {self.threshold}")

    @property
    def limit(self) -> float:
        """The threshold."""
        return CRITERIA[self.criterion].threshold if self.threshold is None else self.threshold

    def of(self, config: RecurrentConfig) -> Exit:
        """The exit from a model: by its own threshold where its gate was given none."""
        own = self.criterion == "gate" and self.threshold is None
        return dataclasses.replace(self, threshold=config.exit_threshold) if own else self


def _uniform(s: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.full(logits.shape, -jnp.log(logits.shape[-1]), jnp.float32)


def _divergence(previous: jax.Array, current: jax.Array) -> jax.Array:
    """KL(previous || current) of two arrays of log-probabilities [B, V]."""
    return (jnp.exp(previous) * (previous - current)).sum(-1)


def _kl(previous: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    current = jax.nn.log_softmax(logits)
    return current, _divergence(previous, current) < limit


def _min_p_kl(previous: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    """What is less likely than a tenth of the likeliest counts as 1 / V."""
    p = jax.nn.softmax(logits)
    p = jnp.where(p < 0.1 * p.max(-1, keepdims=True), 1 / p.shape[-1], p)
    current = jnp.log(p / p.sum(-1, keepdims=True))
    return current, _divergence(previous, current) < limit


def _entropy(previous: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    logp = jax.nn.log_softmax(logits)
    current = -(jnp.exp(logp) * logp).sum(-1)
    return current, jnp.abs(current - previous) < limit


def _stable(previous: Any, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    """As many equal choices in a row as `limit` says."""
    token, run = previous
    current = jnp.argmax(logits, -1)
    run = jnp.where(current == token, run + 1, 0)
    return (current, run), run >= limit


def _latent(previous: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    moved = jnp.linalg.norm(s - previous, axis=-1) / jnp.linalg.norm(s, axis=-1)
    return s, _mean(moved, real) < limit


def _cosine(previous: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    lengths = jnp.linalg.norm(s, axis=-1) * jnp.linalg.norm(previous, axis=-1)
    return s, _mean(1 - (s * previous).sum(-1) / jnp.maximum(lengths, 1e-8), real) < limit


def _gate(survives: jax.Array, s: jax.Array, logits: jax.Array, real: jax.Array, limit: float) -> Any:
    """Stops where the learnt distribution (2510.25741) has passed `limit` so far; `logits` [B, 1] are the gate's."""
    survives = survives * (1 - jax.nn.sigmoid(logits[:, 0]))
    return survives, 1 - survives >= limit


def _mean(values: jax.Array, real: jax.Array) -> jax.Array:
    return jnp.where(real, values, 0).sum(-1) / jnp.maximum(real.sum(-1), 1)


CRITERIA: dict[str, Criterion] = {
    "kl": Criterion(5e-4, _uniform, _kl),
    "latent": Criterion(0.03, lambda s, logits: s, _latent),
    "cosine": Criterion(1e-3, lambda s, logits: s, _cosine),
    "entropy": Criterion(1e-3, lambda s, logits: jnp.full(s.shape[:1], 100.0), _entropy),
    "argmax": Criterion(5, lambda s, logits: (jnp.full(s.shape[:1], -1), jnp.zeros(s.shape[:1], jnp.int32)), _stable),
    "min_p_kl": Criterion(1e-5, _uniform, _min_p_kl),
    "gate": Criterion(RecurrentConfig.exit_threshold, lambda s, logits: jnp.ones(s.shape[:1]), _gate),
}


def exit_distribution(logits: jax.Array) -> jax.Array:
    """Log-probabilities of stopping after each iteration: gate logits [T, ...] -> [T, ...]; the last takes the rest.

    p_t = sigmoid(z_t) prod_{j < t} (1 - sigmoid(z_j)).
    """
    stays = jnp.cumsum(jax.nn.log_sigmoid(-logits[:-1]), 0)
    stays = jnp.concatenate([jnp.zeros_like(logits[:1]), stays])
    stops = jnp.concatenate([jax.nn.log_sigmoid(logits[:-1]), jnp.zeros_like(logits[:1])])
    return stays + stops


class ExitGate(nn.Module):
    """The chance to stop after an iteration, from its final hidden state (Ouro, 2510.25741, section 3); fp32 inside."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """hidden [B, S, D] -> logits [B, S], fp32."""
        kernel = nn.with_logical_partitioning(weights(self.config), ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        dtype = jnp.dtype(self.config.param_dtype)
        w = self.param("kernel", kernel, (self.config.d_model,), dtype).astype(jnp.float32)
        b = self.param("bias", zeros, (1,), dtype).astype(jnp.float32)
        return hidden.astype(jnp.float32) @ w + b[0]
