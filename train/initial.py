"""Where a run begins: the tokenizer, the model and its first parameters, new or from something trained before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.chat import THINK_CLOSE, THINK_OPEN
from data.tasks.base import Task
from data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from infer.load import open_origin
from model import Model, ModelConfig, RopeConfig, build
from model.lm import Params
from model.platform import compute_dtype
from train.tokenizers import train_tokenizer

APPLIED = ("dtype", "param_dtype", "remat")  # settings that may be changed on a trained model


def make_tokenizer(config: ConfigDict, task: Task, workdir: Path) -> Tokenizer:
    """The tokenizer, in order: the run's own (when it resumes), the one asked for, that of `init_from`, characters."""
    saved = workdir / "tokenizer"
    if saved.is_dir() and (workdir / "config.json").is_file():
        return load_tokenizer(saved)
    spec = {k: v for k, v in config.tokenizer.items() if v}
    if not spec:
        return open_origin(config.init_from).tokenizer() if config.init_from else _characters(task)
    if spec == {"kind": "char"}:
        return _characters(task)
    size = spec.pop("vocab_size", 0)
    if size:
        return train_tokenizer(spec.get("kind", ""), task, config.data.split, size, saved)
    return build_tokenizer(spec)


def _characters(task: Task) -> Tokenizer:
    if task.alphabet is None:
        raise ValueError("this task's text has no fixed alphabet: set tokenizer.kind to byte, sentencepiece or hf")
    return build_tokenizer({"kind": "char", "alphabet": task.alphabet, "specials": (THINK_OPEN, THINK_CLOSE)})


def make_model(
    config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None
) -> tuple[Model, Callable[[], Params]]:
    """The model, and a function that draws or loads its first parameters onto `mesh`."""
    settings = config.model.to_dict()
    settings["dtype"] = compute_dtype(settings["dtype"])
    if config.init_from:
        return _trained(config.init_from, settings, mesh)
    settings["vocab_size"] = settings["vocab_size"] or tokenizer.vocab_size
    model = build(settings)
    shardings = None if mesh is None else model.shardings(mesh)
    key = jax.random.key(config.seed)
    return model, lambda: jax.jit(model.init, out_shardings=shardings)(key)


def _trained(
    folder: str, settings: dict[str, Any], mesh: jax.sharding.Mesh | None
) -> tuple[Model, Callable[[], Params]]:
    origin = open_origin(folder)
    _check_agrees(settings, origin.model.config, folder)
    changes = {name: settings[name] for name in APPLIED}
    if origin.config:
        changes["param_dtype"] = origin.model.config.param_dtype
    model = build(origin.model.config.replace(**changes))
    return model, lambda: origin.params(mesh, dtype=settings["param_dtype"])


def _check_agrees(settings: dict[str, Any], found: ModelConfig, folder: str) -> None:
    """Raises where the config asks for a model that `folder` does not hold, rather than ignore what was asked."""
    for field in dataclasses.fields(ModelConfig):
        default = 0 if field.default is dataclasses.MISSING else field.default
        asked = settings[field.name]
        if isinstance(default, RopeConfig):
            asked = RopeConfig(**asked)
        if field.name not in APPLIED and asked != default and asked != getattr(found, field.name):
            raise ValueError(
                f"model.{field.name} is {asked!r} in the config, but {folder} holds a model with"
                f" {getattr(found, field.name)!r}; leave it out, or start without init_from"
            )
