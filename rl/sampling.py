"""How the rollouts of a policy-optimisation run are sampled, as `generate` takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from data.thoughts import Ending
from infer.recurrence import Recurrence
from infer.sampling import Execution, SamplingParams
from infer.thoughts import ThoughtNoise, Thoughts, thoughts_of
from model.depth import draw_depth
from model.lm import Model
from rl.rules import RolloutRules
from settings.data import BY_GATE


def rollout_sampling(
    rules: RolloutRules, stop: tuple[int | str, ...], progress: Callable[[int, int], None] | None = None
) -> SamplingParams:
    """The samples of a rollout, which `stop` ends; of more groups than are learnt from, the first complete ones."""
    execution = Execution(
        slots=rules.slots,
        routes=rules.replay_routes,
        min_complete_groups=rules.prompts if rules.carry else 0,
        progress=progress,
    )
    return SamplingParams(rules.max_new_tokens, rules.temperature, stop=stop, n=rules.samples, execution=execution)


def rollout_thoughts(rules: RolloutRules, ending: Ending) -> Thoughts | None:
    """The thoughts that every prompt ends in, with the noise by which those of samples differ."""
    thoughts = thoughts_of(ending)
    noise = ThoughtNoise(rules.thought_dropout, rules.thought_noise, rules.thought_noise_scale)
    return thoughts and dataclasses.replace(thoughts, noise=noise)


def rollout_recurrence(
    model: Model,
    rules: RolloutRules,
    samples: int,
    key: jax.Array | None,
    task_depths: np.ndarray | None = None,
    jitter: int = 0,
) -> Recurrence | None:
    """The iterations of each of N samples: the mean, its own draw (without a `key` the most that there may be), the
    exit gate's, or what its task names, `task_depths` [N], and up to `jitter` more.

    Raises ValueError beyond `rl.max_depth`.
    """
    if rules.depth == "mean":
        return None
    if rules.depth == BY_GATE:
        return Recurrence(BY_GATE, gate_drawn=True)
    r = model.config.recurrent
    max_depth = rules.max_depth or 2 * r.mean
    if key is None:
        return Recurrence(np.full(samples, max_depth), max_depth)
    if task_depths is None:
        drawn = draw_depth(dataclasses.replace(r, per_sequence=True), key, samples)
        return Recurrence(np.minimum(np.asarray(drawn), max_depth), max_depth)
    depths = task_depths + np.asarray(jax.random.randint(key, (samples,), 0, jitter + 1))
    if depths.max() > max_depth:
        raise ValueError(
            f"an example is to be thought about for {depths.max()} iterations (task, data.depth_offset and"
            f" data.depth_jitter together), rl.max_depth allows {max_depth}; raise it"
        )
    return Recurrence(depths, max_depth)
