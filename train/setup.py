"""From a config to the things a run is made of. ConfigDicts stop here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import optax
from ml_collections import ConfigDict

from data.tasks import build_task
from data.tasks.base import Task
from data.tokenizer import Tokenizer, check_vocab
from model import Model
from model.lm import Params
from model.sharding import make_mesh
from train.initial import make_model, make_tokenizer
from train.losses import Batch, Objective
from train.optimizer import make_optimizer, optimizer_config
from train.rows import RowTraining, row_training


class Source(Protocol):
    """Where batches come from: a data iterator and a rollout worker have the same face."""

    def next(self, params: Params, step: int) -> Batch:
        """The batch of one step; a data iterator ignores both arguments."""

    def state(self) -> dict[str, Any]:
        """The JSON-able position after the last batch."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position."""

    def stats(self) -> Mapping[str, float]:
        """Host metrics of the last batch."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every algorithm is given. `make_params` loads or draws the initial parameters, sharded on `mesh` if there is
    one.
    """

    config: ConfigDict
    workdir: Path
    model: Model
    make_params: Callable[[], Params]
    tokenizer: Tokenizer
    task: Task
    mesh: jax.sharding.Mesh | None
    optimizer: optax.GradientTransformation
    rows: RowTraining | None
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to the loop: its objective, its source, and (if it has any) the last batch as text."""

    objective: Objective
    source: Source
    samples: Callable[[], list[dict[str, Any]]] = list
    whole_batches: bool = False  # every process makes the whole batch (rollouts), not only its own rows


def prepare(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> Setup:
    """Builds all that does not depend on the algorithm; bad values raise ValueError or FileNotFoundError here."""
    task = make_task(config)
    tokenizer = make_tokenizer(config, task, workdir)
    mesh = None if set(config.mesh.values()) == {1} or jax.device_count() == 1 else make_mesh(config.mesh.to_dict())
    model, make_params = make_model(config, tokenizer, mesh)
    check_vocab(tokenizer, model.config.vocab_size)
    optimizer = make_optimizer(config.optimizer, config.steps, axes=model.axes())
    rows = row_training(model, optimizer_config(config.optimizer), config.steps)
    return Setup(config, workdir, model, make_params, tokenizer, task, mesh, optimizer, rows, say)


def make_task(config: ConfigDict) -> Task:
    """The task of `config.data`; its folder is `config.data.path`."""
    options = config.data.options.to_dict()
    if config.data.path:
        options["path"] = config.data.path
    return build_task(config.data.task, **options)
