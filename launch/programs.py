"""The programs of a run, from its config alone: functions and the shapes they take, as `run` would compile them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, cast

import jax
from ml_collections import ConfigDict

import rl.grpo as rl_grpo
from infer.decode import decode
from infer.load import open_origin
from launch.decoding import decode_plan, placed, prompt_columns, reinforced, sampler_arguments
from model import Model, build
from model.compute import flops
from model.lm import Params
from model.platform import compute_dtype
from model.reports import Work
from settings.run import RunConfig, run_config
from train.algorithms import update_of
from train.batches import abstract
from train.initial import make_model, make_tokenizer
from train.optimizer import optimizer_config
from train.setup import Setup, Update, make_task, no_ending, run_optimizer
from train.sparse_tables import sparse_tables_of
from train.state import TrainState, new_state, state_shardings
from train.step import step_of


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to lower and compile, of which `tokens` pass through the model in one turn.

    `turns`: how often loops turn whose count is not in the program, by how deep they are nested in one another.
    `trains`: whether the model learns from the tokens, which costs three times a look at them. `beside`: what else the
    run keeps on the devices meanwhile, trees of shapes by name. `left_out`: what it runs besides, in words.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    arguments: Any
    tokens: int
    trains: bool
    turns: tuple[int, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def setup_of(config: ConfigDict, mesh: jax.sharding.Mesh) -> Setup:
    """What algorithms are given, without data and parameters; ValueError for a pipeline, a model without sizes, and one
    that has learnt thoughts.
    """
    if config.stages:
        raise ValueError(f"a pipeline's stages {tuple(config.stages)} are planned one by one: see launch/stages.py")
    if _is_here(config.init_from) and (thoughts := open_origin(config.init_from).ending.thoughts):
        raise ValueError(
            f"init_from={config.init_from} is a model with {thoughts} thoughts after every question, and there are no"
            " plans with thoughts"
        )
    no_ending(0, config.eval.thoughts)
    model = model_of(config, mesh)
    optimizer = run_optimizer(config, model)
    rows = sparse_tables_of(model, optimizer_config(config.optimizer), config.steps)
    nothing = cast(Any, None)
    return Setup(
        run_config(config, model.config),
        Path(),
        model,
        nothing,
        nothing,
        nothing,
        mesh,
        optimizer,
        rows,
        print,
        nothing,
    )


def _is_here(folder: str) -> bool:
    return bool(folder) and Path(folder).exists()


def model_of(config: ConfigDict, mesh: jax.sharding.Mesh) -> Model:
    """The model of a run, computing as suits the mesh: that of `init_from` as the run would change it, or where that
    folder is not here, of the sizes in the config.
    """
    settings = config.model.to_dict()
    trained = _is_here(config.init_from) or (config.init_from and not settings["d_model"])
    if not settings["d_model"] and not trained:
        raise ValueError("a plan needs the model's sizes: set model.d_model and the others, or init_from")
    if not trained and not settings["vocab_size"]:
        settings["vocab_size"] = make_tokenizer(config, make_task(config), Path()).vocab_size
    with jax.set_mesh(mesh):
        if trained:
            return make_model(config, cast(Any, None), mesh)[0]
        settings["dtype"] = compute_dtype(settings["dtype"])
    return build(settings)


def parameters(model: Model, mesh: jax.sharding.Mesh) -> Params:
    """The shapes of all parameters, each with its sharding."""
    return placed(model.abstract(), model.shardings(mesh))


def training_step(setup: Setup) -> Program:
    """The step that `train.loop.Trainer` compiles, and the state and the batch that it is given."""
    config, mesh = setup.config, cast(jax.sharding.Mesh, setup.mesh)
    if reinforced(config):
        prompt_columns(setup, True)  # refuses prompts that leave no room
    update = update_of(setup)
    step, batch = step_of(setup, update), abstract(update.batch, mesh)
    state = training_state(setup)
    r = setup.model.config.recurrent
    turns = (max(r.mean - r.grad_steps, 0),) if setup.model.config.depth == "recurrent" else ()
    lower = functools.partial(step.lower, state, batch)
    beside = reference(setup, state.params)
    if reinforced(config) and config.rl.overlap:
        if len({device.process_index for device in mesh.devices.flat}) > 1:
            raise ValueError("rl.overlap=True samples in a thread of its own, which no run on several hosts does")
        beside["the rollout under way"] = decode_step(setup).arguments
    return Program("training step", lower, (state, batch), tokens_of(update), True, turns, beside, left_out(config))


def reference(setup: Setup, params: Params) -> dict[str, Any]:
    """The model that a KL is measured to, which lies on the devices throughout."""
    return {"the reference": params} if reinforced(setup.config) and rl_grpo.has_reference(setup.config) else {}


def left_out(config: RunConfig) -> tuple[str, ...]:
    """What a run computes besides its step and its sampler, none of it with gradients."""
    rl, passes = config.rl, []
    if reinforced(config):
        kinds = {"rl.beta": rl.beta, "rl.track_kl": rl.track_kl, "rl.entropy_share": rl.entropy_share < 1}
        bounds = {"rl.importance_cap": rl.importance_cap, "rl.importance_high": rl.importance_high}
        kinds |= {name: bound is not None for name, bound in bounds.items()}
        passes += [
            f"{name}: log-probs of a rollout, forwards in micro-batches" for name, asked in kinds.items() if asked
        ]
        passes += ["rl.overlap: what the step and the sampler hold for a moment adds up"] if rl.overlap else []
    if config.eval.loss_batches:
        passes.append("eval.loss_batches: the loss of held-out batches, forwards and whole")
    return tuple(passes)


def training_state(setup: Setup) -> TrainState:
    """The shapes of a run's state, laid out as `make_state` does it."""
    config, mesh = setup.config, cast(jax.sharding.Mesh, setup.mesh)
    params = parameters(setup.model, mesh)
    build = functools.partial(
        new_state, optimizer=setup.optimizer, seed=config.seed, ema=bool(config.optimizer.ema), rows=setup.rows
    )
    on_host = config.optimizer.memory == "host"
    return placed(jax.eval_shape(build, params), state_shardings(params, build, mesh, on_host))


def tokens_of(update: Update) -> int:
    """The tokens that pass through the model in an update: prompts that are read apart pass once."""
    if update.plan.read is None:
        return update.batch.forward_tokens
    return int(update.batch.tokens.size + update.batch.shared.tokens.size)


def decode_step(setup: Setup) -> Program:
    """The sampler's loop as a rollout runs it, or where there are none an evaluation."""
    return sampling_step(setup, reinforced(setup.config))


def evaluation_step(setup: Setup) -> Program:
    """The sampler's loop as an evaluation runs it."""
    return sampling_step(setup, False)


def sampling_step(setup: Setup, rollout: bool) -> Program:
    """The sampler's compiled loop; a turn gives every slot a token."""
    mesh, plan, config = cast(jax.sharding.Mesh, setup.mesh), decode_plan(setup, rollout), setup.config
    state = training_state(setup)
    arguments = sampler_arguments(setup, plan, state.params, rollout).decode
    params, ready, slots = arguments[:3]
    turns = (1, 1, plan.recurrence.depth) if plan.recurrence else (1, 1)
    lower = functools.partial(_lowered, mesh, decode, setup.model, plan, *arguments)
    beside = {"the optimiser's state": (state.optimizer, state.rows)} | reference(setup, params)
    beside |= {"the average": state.ema} if state.ema is not None else {}
    beside |= {"parameters that are trained meanwhile": params} if rollout and config.rl.overlap else {}
    name = "decode step" if rollout == reinforced(config) else "decode step of evaluations"
    return Program(name, lower, (params, ready, slots), plan.slots, False, turns, beside, left_out(config))


def model_flops(model: Model, program: Program) -> int:
    """6ND of a training step, 2ND of a decode step (model/compute.py), a recurrent core at its mean depth."""
    r, tokens = model.config.recurrent, program.tokens
    return flops(model, Work(tokens, tokens * r.mean, tokens * min(r.mean, r.grad_steps)), program.trains)


def _lowered(mesh: jax.sharding.Mesh, function: Any, *arguments: Any) -> jax.stages.Lowered:
    with jax.set_mesh(mesh):
        return function.lower(*arguments)
