"""Every recipe: its keys are known, its model builds, its optimiser and rules are accepted."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from configs import common
from data.tasks import TASKS
from launch.sweep import plan
from model import build
from train.algorithms import ALGORITHMS, JOBS
from train.cli import parse
from train.optimizer import make_optimizer
from train.pipeline import runs_of

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py") if "def get_config" in path.read_text()
)
# Other switches than `scratch`.
SWITCHES = {
    "long_context": ("full", "yarn=false"),
    "retrofit": ("core=3",),
    "general_points": ("both",),
    "rollout_overlap": ("pool",),
    "planted": ("start", "base=low"),
    "huginn": ("hub",),
    "ouro": ("hub",),
}


def variants(path: Path) -> list[ConfigDict]:
    """The configs a recipe makes: its default, and each of its switches."""
    spec = importlib.util.spec_from_file_location(path.stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    switches = SWITCHES.get(path.stem, ("hub",) if path.parent.name == "pipelines" else ("scratch",))
    arguments = [None, *switches] if inspect.signature(module.get_config).parameters else []
    return [module.get_config(argument) for argument in arguments] or [module.get_config()]


def names(kind: Any) -> set[str]:
    """The fields of a dataclass."""
    return {field.name for field in dataclasses.fields(kind)}


def same_keys(found: Any, known: Any, at: str = "") -> None:
    """A recipe has the keys of `common.base()`; only options, rewards, stages and sources are its own."""
    assert set(found) == set(known), at
    for key in known:
        if isinstance(known[key], ConfigDict) and key not in ("options", "stage", "rewards", "sources", "least"):
            same_keys(found[key], known[key], f"{at}.{key}")


def test_there_are_recipes() -> None:
    assert Path("configs/quickstart.py") in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_builds(path: Path) -> None:
    for config in variants(path):
        same_keys(config, common.base())
        for run in runs_of(config):
            check(run)


def check(run: ConfigDict) -> None:
    """One run's names are known, its optimiser is accepted and its model, where it makes one, builds."""
    assert run.algorithm in {*ALGORITHMS, *JOBS}
    assert run.data.task in TASKS
    assert set(run.data.options) <= names(TASKS[run.data.task])
    assert run.steps > 0
    rows = run.rl.prompts * run.rl.samples if run.algorithm == "grpo" else run.data.batch_size
    assert not run.micro_batch or rows % run.micro_batch == 0
    assert not run.eval.examples or run.eval.max_new_tokens < run.model.max_length
    if run.model.d_model:
        settings = run.model.to_dict() | {"dtype": "float32", "vocab_size": run.model.vocab_size or 32}
        model = build(settings)
        abstract = jax.eval_shape(model.init, jax.random.key(0))
        jax.eval_shape(make_optimizer(run.optimizer, run.steps, axes=model.axes()).init, abstract)


def test_arguments_take_the_type_of_their_default() -> None:
    found = common.parse_arg("small,steps=10,rate=0.5,name=x", small=False, steps=3, rate=1.0, name="", fast=True)
    assert dict(found) == {"small": True, "steps": 10, "rate": 0.5, "name": "x", "fast": True}
    assert dict(common.parse_arg(None, steps=3)) == {"steps": 3}
    assert common.parse_arg("fast=false", fast=True).fast is False


@pytest.mark.parametrize(
    ("argument", "words"),
    [("stepz=3", "takes steps, fast"), ("steps=x", "of type int"), ("fast=perhaps", "true or false"), ("steps", "int")],
)
def test_wrong_arguments_are_refused(argument: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        common.parse_arg(argument, steps=3, fast=False)


@pytest.mark.more_but(*(f"configs/ablations/{name}.py" for name in ("coconut_methods", "depth_dial", "moe_balance")))
@pytest.mark.parametrize("path", [path for path in RECIPES if "def sweep" in (ROOT / path).read_text()], ids=str)
def test_every_run_of_a_sweep_has_a_model_that_builds(path: Path, tmp_path: Path) -> None:
    """The flags of each run make what `sweep()` yields, and a config that is accepted."""
    for run in plan(str(ROOT / path), tmp_path):
        config = parse(["train", *run.command[2:]], "").config
        for stage in runs_of(config):
            check(stage)
