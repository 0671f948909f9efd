"""From a config to the things a run is made of. ConfigDicts stop here: `Setup.config` is frozen and validated."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import optax
from ml_collections import ConfigDict

from data.depths import ExampleDepths
from data.sources.batch import Batch
from data.tasks import build_task
from data.tasks.base import Task
from data.thoughts import NO_ENDING, Ending
from data.tokenizers.base import Tokenizer
from data.tokenizers.build import check_vocab
from data.verify.pool import Judge, judge_of
from infer.load import Origin, open_origin
from model import Model
from model.lm import Params
from model.sharding import make_mesh
from settings.data import BY_GATE
from settings.run import RunConfig, run_config
from train.accumulate import WHOLE, UpdatePlan
from train.hosts import OverHosts
from train.initial import make_model, make_tokenizer
from train.objectives.exit_gate import learnt_alone
from train.objectives.losses import Objective
from train.optimizer import make_optimizer, optimizer_config
from train.sparse_tables import SparseTables, sparse_tables_of

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
NVIDIA = Path("/proc/driver/nvidia")
SUPERVISED = ("sft", "pretrain")  # algorithms that minimise what `supervised` (train/objectives/sft.py) chooses


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
    one. `ending`: what followed the questions that the run it starts from was trained on. `open` reads the description
    of another trained model in a folder, also of one that a stage before is yet to train.
    """

    config: RunConfig
    workdir: Path
    model: Model
    make_params: Callable[[], Params]
    tokenizer: Tokenizer
    task: Task
    mesh: jax.sharding.Mesh | None
    optimizer: optax.GradientTransformation
    rows: SparseTables | None
    say: Callable[[str], None]
    judge: Judge
    ending: Ending = NO_ENDING
    open: Callable[[str], Origin] = open_origin

    @property
    def depths(self) -> ExampleDepths:
        """The iterations that an example is given, where they are asked of the task."""
        data = self.config.data
        return ExampleDepths(data.depth_offset, data.depth_jitter, data.depth_permuted, self.config.seed)

    @property
    def depth_by_example(self) -> bool:
        """Whether training takes the iterations of a row from its example."""
        return self.model.config.depth == "recurrent" and self.model.config.recurrent.draw == "task"

    @property
    def depth_ramp(self) -> bool:
        """Whether the mean depth rises in training."""
        return self.model.config.depth == "recurrent" and bool(self.model.config.recurrent.ramp)


def no_ending(step: int, thoughts: int | None = None) -> Ending:
    """Questions end as they are; ValueError where thoughts are asked for all the same."""
    if thoughts is not None:
        raise ValueError(f"eval.thoughts={thoughts} is for models with thoughts, and nobody taught this one to think")
    return NO_ENDING


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """How evaluation asks: what questions end in after a step of training, with another number of thoughts if one is
    given, and the rows of a split whose loss is measured (None: demonstrations); or, by name, sources of documents, of
    which each has a loss of its own. `measures` of parameters in the place of both, where an algorithm has its own;
    `answers`: whether the model can be asked at all.
    """

    ending: Callable[[int, int | None], Ending] = no_ending
    held_out: Callable[[str], Source] | None = None
    corpora: Callable[[], Mapping[str, Source]] | None = None
    measures: Callable[[Params], dict[str, float]] | None = None
    answers: bool = True


@dataclasses.dataclass(frozen=True)
class Update:
    """All that an update's program depends on beside the model and the optimiser: what it minimises, how the gradient
    is computed, and the shapes of the batch of all hosts together.
    """

    objective: Objective
    batch: Batch
    plan: UpdatePlan = WHOLE


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to the loop: its update, its source, and (if it has any) the last batch as text."""

    update: Update
    source: Source
    samples: Callable[[], list[dict[str, Any]]] = list
    whole_batches: bool = False  # every process makes the whole batch (rollouts), not only its own rows
    waits: bool = False  # a batch needs the parameters of the update before (rollouts)
    restarts: Callable[[int], bool] = lambda step: False  # whether the optimizer forgets before this step
    evaluation: EvaluationSpec = EvaluationSpec()
    watch: Callable[[int, Mapping[str, float]], None] = lambda step, record: None  # sees the metrics of every step
    sampled: Callable[[], int] = lambda: 0  # the FLOPs of sampling what the last batch is the first to learn from
    arrays: Callable[[], dict[str, Any]] = dict  # arrays of the source that belong into a checkpoint
    restore_arrays: Callable[[Mapping[str, Any]], None] = lambda arrays: None  # takes them back


def prepare(
    config: ConfigDict, workdir: Path, say: Callable[[str], None], coming: Mapping[str, Origin] | None = None
) -> Setup:
    """Builds all that does not depend on the algorithm; bad values raise ValueError or FileNotFoundError here.

    `coming`: by folder, what trained models will lie there that do not yet.
    """
    run_config(config)
    task = make_task(config)

    def opened(folder: str) -> Origin:
        return coming[folder] if coming and folder in coming else open_origin(folder)

    origin = opened(config.init_from) if config.init_from else None
    tokenizer = make_tokenizer(config, task, workdir, origin)
    mesh = mesh_of(config)
    model, make_params = make_model(config, tokenizer, mesh, origin)
    tokenizer = check_vocab(tokenizer, model.config.vocab_size, model.config.pairs)
    optimizer = run_optimizer(config, model)
    ending = origin.ending if origin else NO_ENDING
    # Thoughts take several passes, and the taps of sparse gradients allow one.
    dense = {"tables": "dense"} if config.algorithm == "coconut" or ending.thoughts else {}
    rows = sparse_tables_of(model, optimizer_config(config.optimizer, **dense), config.steps)
    judge = judge_of(task, workers=config.data.verify_workers, seconds=config.data.verify_seconds)
    judge = OverHosts(judge) if jax.process_count() > 1 else judge
    run = run_config(config, model.config)
    return Setup(run, workdir, model, make_params, tokenizer, task, mesh, optimizer, rows, say, judge, ending, opened)


def run_optimizer(config: ConfigDict, model: Model) -> optax.GradientTransformation:
    """The optimiser of a run, of the parameters that its objective moves; ValueError where no objective moves them."""
    alone = learnt_alone(model.config)
    rewarded = config.algorithm == "grpo" and config.rl.depth == BY_GATE
    if alone and config.algorithm not in SUPERVISED and not rewarded:
        raise ValueError(
            f'model.recurrent.exit_stage="gate" is learnt by algorithm={" or ".join(SUPERVISED)}, or by grpo with'
            f' rl.depth="gate", and this one is {config.algorithm}: leave it out'
        )
    return make_optimizer(config.optimizer, config.steps, axes=model.axes(), trainable=alone)


def make_task(config: ConfigDict) -> Task:
    """The task of `config.data`; its folder is `config.data.path`."""
    options = config.data.options.to_dict()
    if config.data.path:
        options["path"] = config.data.path
    return build_task(config.data.task, **options)


def mesh_of(config: ConfigDict) -> jax.sharding.Mesh | None:
    """The mesh over this run's devices, None for a single one; ValueError where the sizes do not multiply to them."""
    if set(config.mesh.values()) == {1}:
        return None
    mesh = make_mesh(config.mesh.to_dict(), jax.devices()[: jax.device_count()])
    return mesh if mesh.size > 1 else None


def check_accelerator(launch: Mapping[str, Any]) -> None:
    """Raises ValueError where a run was to have GPUs or TPUs and JAX has found none.

    It was to have them when `config.launch` or JAX_PLATFORMS says so, or when JAX's CUDA plugin is installed on a host
    with an NVIDIA driver.
    """
    try:
        backend, why = jax.default_backend(), "only CPU devices"
    except (RuntimeError, AssertionError) as error:  # none of the platforms that JAX_PLATFORMS names
        backend, why = "none", f"{error}" or "no device at all"
    if backend not in ("cpu", "none"):
        return
    asked = [f"launch.{name}={launch[name]!r}" for name in ("gpus", "tpu") if launch[name]]
    platforms = os.environ.get("JAX_PLATFORMS", "")
    asked += [f"JAX_PLATFORMS={platforms}"] if platforms and platforms.split(",")[0] != "cpu" else []
    if asked:
        raise ValueError(
            f"this run asks for an accelerator ({', '.join(asked)}), and JAX has found none ({why}). Mend the driver or"
            " the installation of JAX, or leave that setting out to train on the CPU"
        )
    if not platforms and any(map(importlib.util.find_spec, CUDA_PLUGINS)) and NVIDIA.exists():
        raise ValueError(
            f"JAX's CUDA plugin is installed and {NVIDIA} exists, but JAX has found no GPU: the driver may have failed"
            " (`nvidia-smi` tells). JAX_PLATFORMS=cpu trains on the CPU"
        )
