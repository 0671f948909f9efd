"""What is planned is what is trained: planner and trainer lower one program, to the last letter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from infer.load import Origin
from launch.programs import setup_of, training_state, training_step
from launch.stages import stages_of
from model.sharding import make_mesh, parse_rules, using
from tests.test_configs import RECIPES, variants
from tests.tiny_config import get_config
from tests.train.test_batches import KINDS
from train.algorithms import JOBS, UPDATES
from train.batches import abstract
from train.console import Console
from train.graph import Stage, graph_of
from train.loop import Trainer
from train.pipeline import Coming, runs_of
from train.settings import override
from train.setup import Setup, make_task, prepare

MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 4}]
MORE: dict[str, dict[str, Any]] = {
    "sft micro-batches": {"micro_batch": 8, "data.batch_size": 16, "optimizer.ema": 0.9},
    "sft tables by rows": {
        "model.ffn": "peer",
        "model.peer.n_experts": 64,
        "model.peer.heads": 2,
        "model.peer.top_k": 4,
    },
    "sft host": {"optimizer.memory": "host"},
    "sft ahead": {"model.mtp.depth": 1, "model.layers": "scanned", "model.remat": "full"},
    "grpo micro-batches": {"micro_batch": 8, "rl.max_new_tokens": 32, "model.max_length": 96, "rl.widths": 2},
}


def same_text(
    planned: ConfigDict, trained: ConfigDict, folder: Path, coming: Mapping[str, Origin] | None = None
) -> Setup:
    """Asserts that both steps are one for the shapes of the plan; gives the trainer's setup, whose judge is closed."""
    with using(parse_rules(trained.sharding)):
        mesh = make_mesh(trained.mesh.to_dict())
        program = training_step(setup_of(planned, mesh))
        setup = prepare(trained, folder, lambda text: None, coming)
        try:
            setup = dataclasses.replace(setup, make_params=setup.model.abstract)
            trainer = Trainer(setup, Console(trained.name), 0.0)
            assert setup.mesh == mesh
            state, batch = program.arguments
            assert training_state(setup) == state
            assert abstract(trainer.algorithm.update.batch, mesh) == batch
            assert program.lower().as_text() == trainer.update.lower(state, batch).as_text()
        finally:
            setup.judge.close()
    return setup


# Each setting that changes the program has a case in the first tier, on one mesh.
REPRESENTATIVES = (
    *("sft packed", "sft tables by rows", "sft host", "sft ahead", "sft micro-batches"),
    *("grpo kl", "grpo drawn depth", "grpo routes", "grpo minibatches", "grpo carry", "grpo rows with prompts"),
)


@pytest.mark.more_but(f"grpo-{MESHES[1]}", *(f"{kind}-{MESHES[0]}" for kind in REPRESENTATIVES))
@pytest.mark.parametrize(
    ("kind", "mesh"),
    [*((kind, MESHES[0]) for kind in (*KINDS, *MORE)), *((kind, MESHES[1]) for kind in ("sft", "grpo", "grpo routes"))],
    ids=str,
)
def test_tiny_runs(kind: str, mesh: dict[str, int], tmp_path: Path) -> None:
    config = get_config(kind.split()[0])
    config.rl.prompts = 4  # sixteen rows, or eight in each of two updates
    config.mesh.update(mesh)
    config = override(config, (KINDS | MORE)[kind])[0]
    same_text(config, config, tmp_path)


def test_another_setting_is_another_text(tmp_path: Path) -> None:
    """The comparison sees what a setting changes."""
    config, other = get_config("sft"), get_config("sft")
    for each in (config, other):
        each.mesh.update(MESHES[0])
    other.optimizer.weight_decay = 0.5
    with pytest.raises(AssertionError):
        same_text(config, other, tmp_path)


def recipes() -> list[Any]:
    """Every config that a recipe makes, by the number of its switch."""
    numbered = [(path, number) for path in RECIPES for number, _ in enumerate(variants(path))]
    return [pytest.param(path, number, id=f"{path}-{number}") for path, number in numbered]


def unavailable(config: ConfigDict) -> str:
    """Why a run cannot be built here, or nothing."""
    if config.algorithm not in UPDATES:
        return f"no plan of algorithm {config.algorithm}"
    if config.init_from or not config.model.d_model:
        return f"starts from a trained model, init_from={config.init_from!r}"
    if config.data.path and not Path(config.data.path).is_dir():
        return f"its data, data.path={config.data.path}, are not here"
    if config.tokenizer.path and not Path(config.tokenizer.path).exists():
        return f"its tokenizer, tokenizer.path={config.tokenizer.path}, is not here"
    if not config.tokenizer.kind and not make_task(config).alphabet:
        return "its tokenizer comes with the weights, which are not here"
    return ""


@pytest.mark.more
@pytest.mark.parametrize(("path", "number"), recipes())
def test_recipes(path: Path, number: int, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size on eight devices; a stage starts from what the one before it will be."""
    config = variants(path)[number]
    config.mesh.update(dict.fromkeys(config.mesh, 1) | MESHES[0])
    if config.data.task == "gsm8k":
        config.data.path = str(shared / "data" / "gsm8k")
    if why := unavailable(runs_of(config, tmp_path)[0]):
        pytest.skip(why)
    monkeypatch.chdir(tmp_path)
    coming: dict[str, Origin] = {}
    graph = graph_of(config, tmp_path) if config.stages else [Stage("", config, tmp_path / "run", {})]
    whole = [stage for stage in graph if stage.config.algorithm not in JOBS]
    for planned, stage in zip(stages_of(config), whole, strict=True):
        if any(str(stage.folder.parent / name) not in coming for name in stage.needs):
            continue  # it reads files that a stage before it writes, or what such a stage trains
        trained = copy.deepcopy(stage.config).unlock()
        for each in (planned, trained):  # rows for eight devices
            each.data.batch_size += -each.data.batch_size % 8
        setup = same_text(planned, trained, stage.folder, coming)
        coming[str(stage.folder)] = Coming(stage.folder, setup.model, {"algorithm": trained.algorithm}, setup.tokenizer)
