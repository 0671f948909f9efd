"""Where a run begins: the tokenizer, the model and its first parameters, new or from something trained before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from data.chat import THINK_CLOSE, THINK_OPEN
from data.sources.corpus import Corpus
from data.sources.thoughts import SPECIALS
from data.tasks.base import JOINER, Task
from data.tokenizers.base import Tokenizer
from data.tokenizers.build import build_tokenizer, load_tokenizer
from infer.load import Origin, open_origin
from model import Model, ModelConfig, build
from model.depth.retrofit import surgery
from model.lm import Params
from model.platform import compute_dtype
from settings.corpus import CorpusConfig
from settings.model_parts import PARTS
from settings.setting import from_mapping
from settings.table import of_trained
from store.objects import local_copy, on_disk
from train.tokenizers import train_tokenizer

APPLIED = of_trained("own")
CHANGEABLE = of_trained("change")


def make_tokenizer(config: ConfigDict, task: Task, workdir: Path, origin: Origin | None = None) -> Tokenizer:
    """The tokenizer, in order: the run's own (when it resumes), the one asked for, that of `origin` (by default what
    `init_from` holds), characters.
    """
    saved = workdir / "tokenizer"
    if saved.is_dir() and (workdir / "config.json").is_file():
        return load_tokenizer(local_copy(saved))
    spec = {k: v for k, v in config.tokenizer.items() if v}
    # Of a corpus the tokenizer is made of its documents.
    corpus = Corpus(from_mapping(CorpusConfig, config.corpus)) if config.algorithm == "pretrain" else None
    task, more = (task, ()) if corpus is None else (corpus, corpus.specials)
    if not spec and config.init_from:
        return (origin or open_origin(config.init_from)).tokenizer()
    if not spec or spec == {"kind": "char"}:
        return _characters(task, SPECIALS if config.algorithm == "coconut" else more, config.model.pairs)
    size = spec.pop("vocab_size", 0)
    if size:
        return train_tokenizer(spec.get("kind", ""), task, config.data.split, size, on_disk(saved))
    if spec == {"kind": "byte"} and more:
        spec["specials"] = (THINK_OPEN, THINK_CLOSE, *more)
    return build_tokenizer(spec)


def _characters(task: Task, more: tuple[str, ...], pairs: bool) -> Tokenizer:
    if task.alphabet is None:
        raise ValueError("this task's text has no fixed alphabet: set tokenizer.kind to byte, sentencepiece or hf")
    specials = (THINK_OPEN, THINK_CLOSE, *more)
    pair = JOINER if pairs else ""
    return build_tokenizer({"kind": "char", "alphabet": task.alphabet, "specials": specials, "pair": pair})


def make_model(
    config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh | None, origin: Origin | None = None
) -> tuple[Model, Callable[[], Params]]:
    """The model, and a function that draws its first parameters onto `mesh`, or loads those of `origin` (by
    default what `init_from` holds).
    """
    settings = config.model.to_dict()
    settings["dtype"] = compute_dtype(settings["dtype"])
    key = jax.random.key(config.seed)
    if config.init_from:
        return _trained(origin or open_origin(config.init_from), settings, mesh, key)
    settings["vocab_size"] = settings["vocab_size"] or tokenizer.vocab_size
    model = build(settings)
    shardings = None if mesh is None else model.shardings(mesh)
    return model, lambda: jax.jit(model.init, out_shardings=shardings)(key)


def _trained(
    origin: Origin, settings: dict[str, Any], mesh: jax.sharding.Mesh | None, key: jax.Array
) -> tuple[Model, Callable[[], Params]]:
    found, move = origin.model, lambda params: params
    if settings["depth"] == "recurrent" and found.config.depth == "stack":
        found, move = surgery(found, **settings["recurrent"])
    held, asked = found.config.mtp.depth, settings["mtp"]["depth"]
    scores = _new_scores(settings["score"]["size"], found.config.score.size, str(origin.folder))
    depth = 0 if scores else held if asked is None else asked
    changes = _changes(settings, found.config, str(origin.folder)) | {"mtp.depth": depth}
    if origin.config:
        changes["param_dtype"] = origin.model.config.param_dtype
    model = build(unflatten_dict(_flat(found.config.to_dict()) | changes, sep="."))

    def load() -> Params:
        params = move(origin.params(mesh, dtype=settings["param_dtype"], mtp=min(depth, held)))
        if scores:
            params = {name: value for name, value in params.items() if name != "head"}
        new = [f"mtp_{k}" for k in range(held, depth)] + scores
        return _with_new(model, params, [name for name in new if name in model.abstract()], mesh, key)

    return model, load


def _new_scores(asked: int, held: int, folder: str) -> list[str]:
    """The parameters of scores that take the place of an output layer; ValueError for another number of scores."""
    if held and asked not in (0, held):
        raise ValueError(
            f"model.score.size={asked}, but {folder} holds a model of {held} scores: leave it out, or start from a"
            " language model"
        )
    return ["score", "score_bias"] if asked and not held else []


def _with_new(model: Model, params: Params, names: list[str], mesh: jax.sharding.Mesh | None, key: jax.Array) -> Params:
    """The parameters with some top-level parts of the model drawn anew."""
    if not names:
        return params

    def new(tree: Params) -> Params:
        state = {name: tree["state"][name] for name in names if name in tree.get("state", {})}
        return {name: tree[name] for name in names} | ({"state": state} if state else {})

    shardings = None if mesh is None else new(model.shardings(mesh))
    drawn = jax.jit(lambda key: new(model.init(key)), out_shardings=shardings)(key)  # nothing else is computed
    state = {**params.get("state", {}), **drawn.get("state", {})}
    return params | drawn | ({"state": state} if state else {})


def _changes(settings: dict[str, Any], found: ModelConfig, folder: str) -> dict[str, Any]:
    """What the config asks for that `folder`'s model has not, by dotted name; raises for what cannot be changed."""
    asked, has, usual = _flat(settings), _flat(found.to_dict()), _flat(_defaults())
    changes = {name: asked[name] for name in APPLIED}
    for name, value in asked.items():
        if name in (*APPLIED, "mtp.depth") or value in (usual[name], has[name]):
            continue
        learned = name == "max_length" and found.positions == "learned"
        if learned or name not in CHANGEABLE:
            raise ValueError(
                f"model.{name} is {value!r} in the config, but {folder} holds a model with {has[name]!r}; leave it"
                " out, or start without init_from"
            )
        changes[name] = value
    return changes


def _defaults() -> dict[str, Any]:
    """What a ModelConfig says when nothing is asked; 0 where it must be asked."""
    missing = dataclasses.MISSING
    fields = {field.name: 0 if field.default is missing else field.default for field in dataclasses.fields(ModelConfig)}
    return fields | {name: dataclasses.asdict(part()) for name, part in PARTS.items()}


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's settings by dotted name."""
    flat = flatten_dict(tree, sep=".")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}
