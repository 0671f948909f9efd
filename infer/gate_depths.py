"""How long to think about a prompt: the iterations at which the exit gate stops at the prompt's last token.

The gate is read once for a prompt, after every iteration, and every token of an answer then gets as many iterations. A
depth that was drawn so is an action of a policy like the tokens after it, and an update can learn from it
(rl/gate_actions.py); the exit token by token (model/depth/exit.py) depends on keys that no training pass has.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from infer.recurrence import Recurrence
from infer.thoughts import Thoughts
from model.depth.exit import exit_distribution
from model.lm import Model, Params

GATE = (1 << 30) + 1  # folded into a sample's key for its depth: its tokens fold in their own numbers


def check_gate(model: Model, asked: str) -> None:
    """Raises ValueError for a model without an exit gate; `asked`: what takes depths from it."""
    recurrent = model.config.depth == "recurrent"
    if not (recurrent and model.config.recurrent.exit_gate):
        found = "it is recurrent and has none (recurrent.exit_gate)" if recurrent else "it is a plain stack"
        raise ValueError(f'{asked}="gate" asks the exit gate of a recurrent model: {found}')


def prompt_exits(
    model: Model, params: Params, tokens: Int[Array, "P W"], segments: Int[Array, "P W"]
) -> Float[Array, "T P"]:
    """Log-probabilities of stopping after each of `recurrent.mean` iterations, read at the last token of left-padded
    prompts; segment 0 is padding.
    """
    positions = jnp.maximum(segments.cumsum(1) - 1, 0)

    @jax.checkpoint
    def once(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        out = model.apply(params, tokens, positions, segments, depth=1, state=state)
        assert out.state is not None
        return out.state.astype(state.dtype), model.exit_logits(params, out.hidden[:, -1:])[:, 0]

    # A state that is not a number is the model's own start.
    start = jnp.full((*tokens.shape, model.config.d_model), jnp.nan, jnp.dtype(model.config.dtype))
    _, gates = jax.lax.scan(once, start, None, model.config.recurrent.mean)
    return exit_distribution(gates)


_prompt_exits = functools.partial(jax.jit, static_argnums=0)(prompt_exits)


def threshold_depths(logps: Float[Array, "T P"], threshold: float) -> Int[Array, " P"]:
    """The first iteration by which the chance to have stopped has reached `threshold`."""
    reached = jnp.exp(logps).cumsum(0)[:-1] >= threshold
    return jnp.where(reached.any(0), reached.argmax(0), len(logps) - 1) + 1


def drawn_depths(logps: Float[Array, "T N"], key: jax.Array, numbers: Int[Array, " N"]) -> Int[Array, " N"]:
    """An iteration for each sample, drawn by its number."""
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), GATE))(numbers)
    return jax.vmap(jax.random.categorical)(keys, logps.T) + 1


def with_gate_depths(
    model: Model,
    params: Params,
    prompts: tuple[np.ndarray, np.ndarray],
    samples: tuple[np.ndarray, np.ndarray],
    key: jax.Array,
    recurrence: Recurrence | None,
    thoughts: Thoughts | None = None,
) -> Recurrence | None:
    """The recurrence with a depth for every sample where it leaves that to the gate, else as it is.

    `prompts`: tokens and mask [P, W], left-padded; `samples`: the prompt and the number of each [N].
    Raises ValueError for models without a gate, and for prompts that end in thoughts.
    """
    if recurrence is None or not recurrence.by_gate:
        return recurrence
    check_gate(model, "depth")
    if thoughts is not None:
        raise ValueError('depth="gate" is read at the last token of a prompt, and these prompts end in thoughts')
    (tokens, mask), (group_of, numbers) = prompts, samples
    logps = _prompt_exits(model, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.int32))
    config = model.config.recurrent
    if recurrence.gate_drawn:
        depths = drawn_depths(logps[:, group_of], key, jnp.asarray(numbers))
    else:
        depths = threshold_depths(logps, recurrence.gate_threshold or config.exit_threshold)[group_of]
    return Recurrence(np.asarray(depths), config.mean, warm_start=recurrence.warm_start)
