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
from data.thoughts import NO_ENDING, Ending
from data.tokenizer import Tokenizer, check_vocab
from data.verify.pool import Judge, judge_of
from infer.load import open_origin
from model import Model
from model.lm import Params
from model.sharding import make_mesh
from train.accumulate import NOTHING, Savings
from train.hosts import OverHosts
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
    one. `ending`: what followed the questions that the run it starts from was trained on.
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
    judge: Judge
    ending: Ending = NO_ENDING


def no_ending(step: int, thoughts: int | None = None) -> Ending:
    """Questions end as they are; ValueError where thoughts are asked for all the same."""
    if thoughts is not None:
        raise ValueError(f"eval.thoughts={thoughts} is for models with thoughts, and nobody taught this one to think")
    return NO_ENDING


@dataclasses.dataclass(frozen=True)
class Exam:
    """How evaluation asks: what questions end in after a step of training, with another number of thoughts if one is
    given; the rows of a split whose loss is measured (None: demonstrations), and the column of first thoughts in them.
    """

    ending: Callable[[int, int | None], Ending] = no_ending
    held_out: Callable[[str], Source] | None = None
    first: int | None = None


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to the loop: its objective, its source, and (if it has any) the last batch as text."""

    objective: Objective
    source: Source
    samples: Callable[[], list[dict[str, Any]]] = list
    whole_batches: bool = False  # every process makes the whole batch (rollouts), not only its own rows
    waits: bool = False  # a batch needs the parameters of the update before (rollouts)
    restarts: Callable[[int], bool] = lambda step: False  # whether the optimizer forgets before this step
    exam: Exam = Exam()
    watch: Callable[[int, Mapping[str, float]], None] = lambda step, record: None  # sees the metrics of every step
    held: Callable[[], dict[str, Any]] = dict  # arrays of the source that belong into a checkpoint
    hold: Callable[[Mapping[str, Any]], None] = lambda held: None  # takes them back
    savings: Savings = NOTHING


def prepare(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> Setup:
    """Builds all that does not depend on the algorithm; bad values raise ValueError or FileNotFoundError here."""
    task = make_task(config)
    tokenizer = make_tokenizer(config, task, workdir)
    mesh = None if set(config.mesh.values()) == {1} or jax.device_count() == 1 else make_mesh(config.mesh.to_dict())
    model, make_params = make_model(config, tokenizer, mesh)
    tokenizer = check_vocab(tokenizer, model.config.vocab_size, model.config.pairs)
    optimizer = make_optimizer(config.optimizer, config.steps, axes=model.axes())
    ending = open_origin(config.init_from).ending if config.init_from else NO_ENDING
    # Thoughts take several passes, and the taps of sparse gradients allow one.
    dense = {"tables": "dense"} if config.algorithm == "coconut" or ending.thoughts else {}
    rows = row_training(model, optimizer_config(config.optimizer, **dense), config.steps)
    judge = judge_of(task, workers=config.data.verify_workers, seconds=config.data.verify_seconds)
    judge = OverHosts(judge) if jax.process_count() > 1 else judge
    return Setup(config, workdir, model, make_params, tokenizer, task, mesh, optimizer, rows, say, judge, ending)


def make_task(config: ConfigDict) -> Task:
    """The task of `config.data`; its folder is `config.data.path`."""
    options = config.data.options.to_dict()
    if config.data.path:
        options["path"] = config.data.path
    return build_task(config.data.task, **options)
