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
from data.tokenizer import Tokenizer, build_tokenizer, check_vocab, load_tokenizer
from infer.load import load_run, restore_params, stage_folder
from model import Model, ModelConfig, build, hf
from model.lm import Params
from model.platform import compute_dtype
from model.sharding import make_mesh
from train.losses import Batch, Objective
from train.optimizer import make_optimizer
from train.tokenizers import train_tokenizer


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
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to the loop: its objective, its source, and (if it has any) the last batch as text."""

    objective: Objective
    source: Source
    samples: Callable[[], list[dict[str, Any]]] = list


def prepare(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> Setup:
    """Builds all that does not depend on the algorithm; bad values raise ValueError or FileNotFoundError here."""
    task = make_task(config)
    tokenizer = make_tokenizer(config, task, workdir)
    model, make_params = make_model(config, tokenizer)
    check_vocab(tokenizer, model.config.vocab_size)
    mesh = make_mesh(config.mesh.to_dict()) if jax.device_count() > 1 else None
    optimizer = make_optimizer(config.optimizer, config.steps, axes=model.axes())
    shardings = None if mesh is None else model.shardings(mesh)
    return Setup(config, workdir, model, lambda: make_params(shardings), tokenizer, task, mesh, optimizer, say)


def make_task(config: ConfigDict) -> Task:
    """The task of `config.data`; its folder is `config.data.path`."""
    options = config.data.options.to_dict()
    if config.data.path:
        options["path"] = config.data.path
    return build_task(config.data.task, **options)


def make_tokenizer(config: ConfigDict, task: Task, workdir: Path) -> Tokenizer:
    """The tokenizer, in order: the run's own (a resumed run), that of what it starts from, the one asked for."""
    saved = workdir / "tokenizer"
    if saved.is_dir():
        return load_tokenizer(saved)
    origin = config.init_from or config.model.path
    if config.init_from:
        return load_run(config.init_from).tokenizer
    spec = {k: v for k, v in config.tokenizer.items() if v}
    if not spec.get("kind"):
        return load_tokenizer(origin) if origin else _characters(task)
    if spec["kind"] == "char" and "path" not in spec:
        return _characters(task)
    size = spec.pop("vocab_size", 0)
    if size and "path" not in spec:
        return train_tokenizer(spec["kind"], task, config.data.split, size, saved)
    return build_tokenizer(spec)


def _characters(task: Task) -> Tokenizer:
    from data.chat import THINK_CLOSE, THINK_OPEN

    if task.alphabet is None:
        raise ValueError("this task's text has no fixed alphabet: set tokenizer.kind to byte, sentencepiece or hf")
    return build_tokenizer({"kind": "char", "alphabet": task.alphabet, "specials": (THINK_OPEN, THINK_CLOSE)})


def make_model(config: ConfigDict, tokenizer: Tokenizer) -> tuple[Model, Callable[[Any], Params]]:
    """The model and a function from shardings (or None) to its initial parameters."""
    if config.init_from and config.model.path:
        raise ValueError(
            f"both init_from={config.init_from!r} and model.path={config.model.path!r} are given; choose one"
        )
    dtype = compute_dtype(config.model.dtype)
    if config.init_from:
        folder = stage_folder(Path(config.init_from), load_run(config.init_from).config)
        model = load_run(config.init_from).model
        return model, lambda shardings: restore_params(folder, model, shardings=shardings)
    if config.model.path:
        return _pretrained(config, dtype)
    fields = {k: v for k, v in config.model.to_dict().items() if k != "path"}
    model = build(
        ModelConfig.from_dict({**fields, "dtype": dtype, "vocab_size": fields["vocab_size"] or tokenizer.vocab_size})
    )
    key = jax.random.key(config.seed)
    return model, lambda shardings: jax.jit(model.init, out_shardings=shardings)(key)


def _pretrained(config: ConfigDict, dtype: str) -> tuple[Model, Callable[[Any], Params]]:
    mesh = make_mesh(config.mesh.to_dict()) if jax.device_count() > 1 else None
    model, params = hf.load(config.model.path, mesh=mesh, dtype=config.model.param_dtype)
    model = build(model.config.replace(dtype=dtype, remat=config.model.remat))
    return model, lambda shardings: params
