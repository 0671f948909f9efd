"""How a run samples, from its config alone: the plan that `generate` would make of its rollouts or evaluations."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from infer.checks import check_room, resolve_recurrence
from infer.decode import shrinks
from infer.partial import PartialSamples
from infer.prefill import Plan
from infer.sampler import bucket
from infer.sampling import Sampling
from infer.waves import copies, in_waves
from model.exit import Exit
from train.evaluation import check_depths
from train.setup import Setup

SHRINK = 4  # the default of `generate`


def reinforced(config: ConfigDict) -> bool:
    """Whether batches come from rollouts."""
    return bool(config.algorithm == "grpo")


def longest_prompt(setup: Setup, rollout: bool) -> int:
    """Columns of the prompts that a rollout, or an evaluation, may meet."""
    config, most = setup.config, setup.model.config.max_length
    new = (config.rl if rollout else config.eval).max_new_tokens
    longest = (config.rl.max_prompt_length if rollout else 0) or max(min(config.data.length, most - new), 1)
    check_room(setup.model, longest, new)
    return bucket(longest)


def decode_plan(setup: Setup, rollout: bool | None = None) -> Plan:
    """What `generate` makes of the samples of a rollout or an evaluation (None: of what the run has), where all prompts
    are as long as they may be. ValueError where nothing is decoded.
    """
    config, model = setup.config, setup.model
    rollout = reinforced(config) if rollout is None else rollout
    rules, carry = config.rl if rollout else config.eval, config.rl.carry if rollout else 0
    prompts = config.rl.prompts + carry if rollout else config.eval.examples
    if not prompts:
        raise ValueError("eval.examples=0: this run decodes nothing; leave the program out, or set eval.examples")
    recurrence, budget = resolve_recurrence(
        model, prompts * rules.samples, *_depths(setup, rollout, prompts * rules.samples)
    )
    with jax.set_mesh(cast(jax.sharding.Mesh, setup.mesh)):
        times = rules.samples if budget is not None else 1 if carry else copies(prompts, rules.samples)
        group = rules.samples // times
        waves = in_waves(prompts * times, group, rules.slots or None, one_lane=bool(carry))
    return Plan(
        waves.slots,
        waves.prompts * group,
        group,
        longest_prompt(setup, rollout) + (rules.max_new_tokens if carry else 0),
        rules.max_new_tokens,
        (0,),
        Sampling(rules.temperature == 0),
        recurrence=recurrence,
        routes=rollout and config.rl.replay_routes,
        shrink=shrinks(waves.slots, waves.lanes, SHRINK),
        lanes=waves.lanes,
    )


def _depths(setup: Setup, rollout: bool, samples: int) -> tuple[Any, int, Exit | None, str]:
    """Iterations of every sample (the most that may be drawn), the most of all, what ends them early, the start."""
    rl, rules, r = setup.config.rl, setup.config.eval, setup.model.config.recurrent
    if rollout:
        most = (rl.max_depth or 2 * r.mean) if rl.depth == "drawn" else 0
        return np.full(samples, most) if most else None, most, None, ""
    check_depths(setup)
    if setup.model.config.depth != "recurrent":
        return None, 0, None, ""
    wanted = rules.depth or r.mean
    if rules.exit or not rules.depths:
        return wanted, 0, Exit(rules.exit, rules.exit_threshold or None) if rules.exit else None, rules.warm_start
    most = max(wanted, *rules.depths)
    return np.full(samples, wanted), most, None, rules.warm_start


def begun(plan: Plan) -> PartialSamples:
    """The shapes of what samples have said before."""
    kinds = {"tokens": jnp.int32, "logps": jnp.float32, "lengths": jnp.int32, "finished": bool, "row": jnp.int32}
    wide = {"tokens": (plan.max_new_tokens,), "logps": (plan.max_new_tokens,)}
    shapes = {name: (plan.samples, *wide.get(name, ())) for name in kinds}
    return PartialSamples(**{name: jax.ShapeDtypeStruct(shapes[name], kind) for name, kind in kinds.items()})
