"""How a run samples, from its config alone: the plan that `generate` would make of its rollouts or evaluations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from infer.checks import check_room
from infer.continuation import prefix_shapes
from infer.plan import Plan, PromptShape, plan_sampler
from infer.prefill import Prompts, new_cache, prefill
from infer.rows import prefix_columns, prefix_rows
from infer.sampler import bucket
from infer.slots import empty_slots
from infer.thoughts import thoughts_of
from model.lm import Model, Params
from model.sharding import replicated, split_rows
from rl.grpo import longest_prompt, rollout_rules
from rl.sampling import rollout_recurrence, rollout_sampling
from settings.run import RunConfig
from train.evaluation import check_depths, evaluation_recurrence, evaluation_sampling
from train.setup import Setup

STOP = (0,)  # the number of ids that end a sample, and not which, is what a program depends on


def reinforced(config: ConfigDict | RunConfig) -> bool:
    """Whether batches come from rollouts."""
    return bool(config.algorithm == "grpo")


def prompt_columns(setup: Setup, rollout: bool) -> int:
    """Columns of the prompts that a rollout, or an evaluation, may meet."""
    config, most = setup.config, setup.model.config.max_length
    new = (config.rl if rollout else config.eval).max_new_tokens
    longest = longest_prompt(setup) if rollout else max(min(config.data.length, most - new), 1)
    check_room(setup.model, longest, new)
    return bucket(longest)


def decode_plan(setup: Setup, rollout: bool | None = None) -> Plan:
    """What `generate` makes of the samples of a rollout or an evaluation (None: of what the run has), where all prompts
    are as long as they may be. ValueError where nothing is decoded.
    """
    config, model = setup.config, setup.model
    rollout = reinforced(config) if rollout is None else rollout
    prompts = config.rl.prompts + config.rl.carry if rollout else config.eval.examples
    if not prompts:
        raise ValueError("eval.examples=0: this run decodes nothing; leave the program out, or set eval.examples")
    shape, length = PromptShape(prompts, prompt_columns(setup, rollout)), config.rl.max_new_tokens
    if rollout:
        rules = rollout_rules(setup)
        sampling = rollout_sampling(rules, STOP)
        recurrence = rollout_recurrence(model, rules, prompts * sampling.n, None)
        if rules.carry:
            shape = PromptShape(prompts, shape.length, prompts * sampling.n, prefix_columns(length, length))
    else:
        check_depths(setup)
        sampling = evaluation_sampling(config, STOP)
        recurrence = evaluation_recurrence(setup, prompts * sampling.n, config.eval.depth)
    with jax.set_mesh(cast(jax.sharding.Mesh, setup.mesh)):
        thoughts = thoughts_of(setup.ending)
        return plan_sampler(model, shape, sampling, recurrence=recurrence, thoughts=thoughts).plan


class SamplerArguments(NamedTuple):
    """The shapes that the sampler's two halves are lowered with, after the model and the plan: those of
    `infer.prefill.prefill` and `infer.decode.decode`.
    """

    prefill: tuple[Any, ...]
    decode: tuple[Any, ...]


def sampler_arguments(setup: Setup, plan: Plan, params: Params, rollout: bool) -> SamplerArguments:
    """What a rollout or an evaluation hands to the compiled sampler, laid out on the mesh of the run."""
    model, mesh, rl = setup.model, cast(jax.sharding.Mesh, setup.mesh), setup.config.rl
    carry, recurrent = rollout and rl.carry, plan.recurrence is not None
    rows = rl.prompts + rl.carry + prefix_rows(rl.carry * rl.samples) if carry else plan.samples // plan.group
    everywhere = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    ints = functools.partial(everywhere, dtype=jnp.int32)
    tokens, depths = ints((rows, plan.prompt_length)), ints((rows,))
    read = (params, tokens, tokens, depths if plan.recurrence and plan.recurrence.varied else None)
    ready = jax.eval_shape(functools.partial(prefill, model, plan), *read)
    ready = laid_out(mesh, lambda: _like_read(ready, model, plan))
    if carry:
        prefixes = prefix_shapes(plan.samples, plan.max_new_tokens, recurrent)
        prefixes = jax.tree.map(lambda x: everywhere(x.shape, x.dtype), prefixes)
        ready = dataclasses.replace(ready, prefixes=prefixes)
    slots = laid_out(mesh, lambda: empty_slots(model, plan))
    key = jax.eval_shape(lambda: jax.random.key(0))
    draws = (everywhere((), key.dtype), ints((plan.samples,)), everywhere((), jnp.float32))
    return SamplerArguments(read, (params, ready, slots, draws, ints(())))


def _like_read(ready: Prompts, model: Model, plan: Plan) -> Prompts:
    """Nothing in the place of prompts that have been read, and laid out as they are."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), ready)
    cache = dataclasses.replace(new_cache(model, plan, *ready.cache.positions.shape), index=zeros.cache.index)
    return split_rows(dataclasses.replace(zeros, cache=cache))


def laid_out(mesh: jax.sharding.Mesh, make: Callable[[], Any]) -> Any:
    """The shapes of what a function makes, each with the sharding that the compiler gives it on this mesh."""
    with jax.set_mesh(mesh):
        shardings = jax.jit(make).lower().compile().output_shardings
    return placed(jax.eval_shape(make), shardings)


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
