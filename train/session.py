"""Training in four verbs, for loops that a notebook writes itself.

    session = Session(model, params, {"lr": 1e-3}, steps=100)
    session.forward_backward(batch, sft_objective(model))       # may be called several times: gradients add up
    metrics = session.optim_step()
    rollout = session.sample(prompts, SamplingParams(32))
    session.save_state("runs/mine")

The same functions as the compiled step of a run, cut in two: one call of each moves the parameters as that step does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data.sources.batch import Batch
from data.tokenizers.base import Tokenizer
from infer.sampler import Rollout, generate
from infer.sampling import SamplingParams
from model.lm import Model, Params
from model.rules import learn
from model.sharding import on_mesh
from store.checkpoint import Checkpoints
from train.accumulate import Accumulated
from train.batches import check_rows, on_devices
from train.objectives.exit_gate import learnt_alone
from train.objectives.losses import Objective
from train.objectives.metrics import finish
from train.optimizer import make_optimizer
from train.state import TrainState, new_state, state_shardings
from train.step import make_apply, make_backward


class Session:
    """A model in training: `state` holds parameters, optimiser and the number of steps, and may be replaced."""

    def __init__(
        self,
        model: Model,
        params: Params,
        optimizer: Mapping[str, Any] | None = None,
        *,
        steps: int = 1000,
        mesh: jax.sharding.Mesh | None = None,
        seed: int = 0,
    ) -> None:
        """Copies the parameters; `optimizer` are settings of OptimizerConfig, `steps` the length of its schedule.

        Raises ValueError for settings that do not exist or do not go together.
        """
        settings = dict(optimizer or {})
        self.model, self.mesh, self._seed = model, mesh, seed
        transformation = make_optimizer(settings, steps, axes=model.axes(), trainable=learnt_alone(model.config))
        ema = float(settings.get("ema", 0.0))
        build = functools.partial(new_state, optimizer=transformation, seed=seed, ema=bool(ema))
        if mesh is None:
            self.state: TrainState = jax.jit(build)(params)
        else:
            params = jax.device_put(params, model.shardings(mesh))
            self.state = jax.jit(build, out_shardings=state_shardings(params, build, mesh))(params)
        rules = functools.partial(learn, model.config)
        apply = make_apply(transformation, ema_decay=ema, learn=rules)
        self._apply = on_mesh(mesh)(jax.jit(apply, donate_argnums=(0,)))
        self._add = on_mesh(mesh)(jax.jit(lambda left, right: left + right, donate_argnums=(0,)))
        self._backward: dict[Objective, Callable[[TrainState, Any], Accumulated]] = {}
        self._pending: Accumulated | None = None
        self._calls = 0
        self._samplings = 0

    @property
    def params(self) -> Params:
        """The parameters now."""
        return self.state.params

    def forward_backward(self, batch: Batch, objective: Objective) -> dict[str, float]:
        """Adds the gradient of a batch to those since the last `optim_step`; returns the batch's own metrics.

        The objective is compiled once for each function: make it once, outside the loop.
        """
        check_rows(batch.rows, None, self.mesh)
        if objective not in self._backward:
            backward = make_backward(objective)
            self._backward[objective] = on_mesh(self.mesh)(jax.jit(backward))
        # A second batch of the same step has noise of its own.
        state = self.state if not self._calls else dataclasses.replace(self.state, seed=_other(self.state, self._calls))
        gradients = self._backward[objective](state, on_devices(batch, self.mesh))
        loss = gradients.total / jnp.maximum(gradients.count, 1e-8)
        measured = jax.device_get({**finish(gradients.metrics), "loss": loss})
        self._pending = gradients if self._pending is None else self._add(self._pending, gradients)
        self._calls += 1
        return {name: float(value) for name, value in measured.items()}

    def optim_step(self) -> dict[str, float]:
        """Moves the parameters by the gradients added up, as means over their tokens; returns the step's metrics.

        Raises ValueError where there are none.
        """
        if self._pending is None:
            raise ValueError("no gradient to step with: call forward_backward first")
        gradients, self._pending, self._calls = self._pending, None, 0
        self.state, metrics = self._apply(self.state, gradients)
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        tokenizer: Tokenizer | None = None,
        key: jax.Array | None = None,
        **options: Any,
    ) -> Rollout:
        """Samples from the parameters as they are; `key` defaults to one of its own for every call."""
        if key is None:
            key = jax.random.fold_in(jax.random.key(self._seed), self._samplings)
            self._samplings += 1
        sampled = on_mesh(self.mesh)(generate)
        return sampled(self.model, self.params, prompts, key, sampling, tokenizer=tokenizer, **options)

    def save_state(self, folder: str | Path) -> int:
        """Writes a checkpoint and returns its step; raises ValueError while gradients wait for `optim_step`."""
        if self._pending is not None:
            raise ValueError("gradients wait for optim_step, and a checkpoint does not hold them: step first")
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save(self.state, {"samplings": self._samplings})
        checkpoints.close()
        return int(self.state.step)

    def load_state(self, folder: str | Path) -> int:
        """Goes on from the last checkpoint in a folder, and returns its step; FileNotFoundError where there is none."""
        if not (Path(folder) / "checkpoints").is_dir():
            raise FileNotFoundError(f"{folder} holds no checkpoints: name a folder that save_state has written")
        checkpoints = Checkpoints(Path(folder))
        self.state, position, _ = checkpoints.restore(self.state)
        checkpoints.close()
        self._pending, self._calls, self._samplings = None, 0, int(position.get("samplings", 0))
        return int(self.state.step)


def _other(state: TrainState, call: int) -> jax.Array:
    """The seed of a further batch in the same step."""
    return state.seed + jnp.uint32(call * 0x9E3779B9 & 0xFFFFFFFF)
