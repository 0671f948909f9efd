"""Reward over all iterations of a recurrent core (RLTT, 2602.10520): what each of them would have said is learnt from.

The log-probs after iteration t are read out by the same norm and head as those of the last one. Weighted and summed
they take the place of the last one's in the policy loss; the KL and the entropy stay those of the last.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from model.depth.exit import exit_distribution
from model.lm import Model, Params
from settings.rl import LoopConfig
from train.completions import CompletionRows, joined_rows
from train.objectives.exit_gate import iterated
from train.objectives.losses import target_logps

Read = tuple[jax.Array, jax.Array, jax.Array, Any]  # log-probs summed over iterations; log-probs, entropies, the output


def loop_weights(kind: str, iterations: tuple[int, ...], alpha: float = 1.0) -> Float[np.ndarray, " L"]:
    """Weights of the iterations that are read, of sum 1: "uniform", or "progressive", t^alpha (section 3.2)."""
    raw = np.asarray(iterations, np.float64) ** (alpha if kind == "progressive" else 0.0)
    return raw / raw.sum()


def exit_weights(gates: Float[Array, "L ..."]) -> Float[Array, "L ..."]:
    """The chance to stop after each iteration from the logits of the exit gate; a constant, or the gate would learn to
    stop where sampled tokens are likely.
    """
    return jnp.exp(stop_gradient(exit_distribution(gates)))


def read_loops(
    model: Model, params: Params, batch: CompletionRows, rules: LoopConfig, temperature: float = 1.0
) -> Read:
    """The sum over iterations of their weighted log-probs [N, T], with the log-probs [N, T], the entropies and the
    output of the last. One block of logits is held at a time.
    """
    iterations = rules.loops_at or tuple(range(1, model.config.recurrent.mean + 1))
    rows, width = joined_rows(batch).replace(depth=None), batch.shared.tokens.shape[1]
    outputs = list(iterated(model, params, rows, iterations))
    states = [out.hidden[:, width - 1 : -1] for out in outputs]
    # Side by side they are columns of one reading, block after block.
    targets = jnp.tile(batch.tokens, (1, len(states)))
    logps, entropies = target_logps(model, params, jnp.concatenate(states, 1), targets, temperature)
    by_loop = jnp.stack(jnp.split(logps, len(states), 1))
    if rules.loops == "exit":
        weights = exit_weights(jnp.stack([model.exit_logits(params, hidden) for hidden in states]))
    else:
        weights = jnp.asarray(loop_weights(rules.loops, iterations, rules.loop_alpha), jnp.float32)[:, None, None]
    last = jnp.split(entropies, len(states), 1)[-1]
    return (weights * by_loop).sum(0), by_loop[-1], last, outputs[-1]


def check_loops(model: Model, rules: Any) -> None:
    """Raises ValueError where `rl.loops` asks for iterations that the model does not have."""
    recurrent, config = model.config.recurrent, model.config
    if rules.loops == "last":
        return
    if config.depth != "recurrent":
        raise ValueError(f"rl.loops={rules.loops!r} is for recurrent models, and this one is a plain stack")
    if rules.loops == "exit" and not recurrent.exit_gate:
        raise ValueError('rl.loops="exit" weighs iterations by the exit gate: the model has none (recurrent.exit_gate)')
    if rules.loops_at and rules.loops_at[-1] != recurrent.mean:
        raise ValueError(
            f"rl.loops_at={rules.loops_at} must end with the iteration that samples, model.recurrent.mean="
            f"{recurrent.mean}"
        )
