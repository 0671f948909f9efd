"""What a plan lowers of the sampler is the text that `generate` lowers, for the same shapes on the same mesh."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.thoughts import Ending
from infer import sampler
from infer.continuation import Continuation, empty_continuation
from infer.decode import decode
from infer.prefill import prefill
from infer.slots import empty_slots
from infer.thoughts import thoughts_of
from launch.decoding import STOP, decode_plan, placed, prompt_columns, sampler_arguments
from launch.programs import setup_of, training_state
from launch.stages import stages_of
from model.sharding import make_mesh, on_mesh
from rl.grpo import rollout_rules
from rl.sampling import rollout_recurrence, rollout_sampling
from tests.launch.test_plan_settings import MIXTURE, RECURRENT, changed
from train.evaluation import evaluation_recurrence, evaluation_sampling
from train.setup import Setup

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

# (config, stage, layers): all kinds of mixers, feed-forwards and depths that the recipes of configs/ plan for pods.
RECIPES = [
    ("quickstart", "grpo", 0),
    ("pipelines.depth", "grpo", 0),
    ("grpo.qwen25_7b", "", 2),
    ("pretrain.mixtral_8x7b", "", 1),
    ("pretrain.deepseek_v3", "", 4),
    ("pretrain.huginn_3_5b", "", 0),
]
SETTINGS: dict[str, tuple[bool, dict[str, Any]]] = {
    "rollout": (True, {}),
    "queue": (True, {"rl__slots": 8}),
    "greedy evaluation": (False, {"eval__examples": 20, "eval__slots": 8}),
    "routes": (True, {"model": MIXTURE, "rl__replay_routes": True}),
    "drawn depths": (True, {"model": RECURRENT, "rl__depth": "drawn", "rl__slots": 8}),
    "evaluation at depths": (False, {"model": RECURRENT, "eval__depths": (1, 5), "eval__examples": 8}),
    "exit": (False, {"model": RECURRENT, "eval__exit": "kl", "eval__examples": 8}),
    "warm start": (False, {"model": RECURRENT, "eval__warm_start": "raw", "eval__examples": 8}),
    "carry": (True, {"rl__carry": 3, "rl__max_new_tokens": 8}),
    "carry of a recurrent model": (True, {"model": RECURRENT, "rl__carry": 3, "rl__max_new_tokens": 8}),
    "thoughts": (True, {"data__length": 40}),
}


class Lowered(Exception):
    """Raised where the sampler would run what it has lowered."""


def texts_of_generate(setup: Setup, rollout: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The two programs of a call of `generate` such as a run makes, as text; nothing is computed."""
    texts: dict[str, str] = {}

    def made(lowered: Any, shapes: Any) -> Any:
        return placed(shapes, lowered.compile().output_shardings)

    def read(model: Any, plan: Any, *given: Any) -> Any:
        lowered = prefill.lower(model, plan, *given)
        texts["prefill"] = lowered.as_text()
        return made(lowered, jax.eval_shape(functools.partial(prefill, model, plan), *given))

    def blank(model: Any, plan: Any) -> Any:
        return made(empty_slots.lower(model, plan), jax.eval_shape(lambda: empty_slots(model, plan)))

    def run(*given: Any) -> Any:
        texts["decode"] = decode.lower(*given).as_text()
        raise Lowered

    for name, stand_in in {"prefill": read, "empty_slots": blank, "decode": run, "finished": lambda *_: False}.items():
        monkeypatch.setattr(sampler, name, stand_in)
    config, rules, model = setup.config, rollout_rules(setup) if rollout else None, setup.model
    count = config.rl.prompts + config.rl.carry if rollout else config.eval.examples
    sampling = rollout_sampling(rules, STOP) if rules else evaluation_sampling(config, STOP)
    recurrence = (
        rollout_recurrence(model, rules, count * sampling.n, jax.random.key(3))
        if rules
        else evaluation_recurrence(setup, count * sampling.n, config.eval.depth)
    )
    length = min(prompt_columns(setup, rollout), model.config.max_length - sampling.max_new_tokens)
    prompts = np.ones((count, length - len(setup.ending.tokens)), np.int32)
    with pytest.raises(Lowered):
        on_mesh(setup.mesh)(sampler.generate)(
            model,
            training_state(setup).params,
            [[*prompt, *setup.ending.tokens] for prompt in prompts],
            on_mesh(setup.mesh)(jax.random.key)(0),
            sampling,
            recurrence=recurrence,
            thoughts=thoughts_of(setup.ending),
            continuation=in_flight(setup, count) if rollout and config.rl.carry else None,
        )
    return texts


def in_flight(setup: Setup, groups: int) -> Continuation:
    """Groups of which as many as may be carried over have said nearly all that they may, each sample something else."""
    rl = setup.config.rl
    blank, carried = empty_continuation(groups * rl.samples, rl.max_new_tokens), rl.carry * rl.samples
    tokens, lengths = blank.tokens.copy(), blank.lengths.copy()
    tokens[:carried, 0], lengths[:carried] = 1 + np.arange(carried) % 9, rl.max_new_tokens - 1
    tokens[:carried, 1] = 1 + np.arange(carried) // 9
    return dataclasses.replace(blank, tokens=tokens, lengths=lengths)


def texts_of_plan(setup: Setup, rollout: bool) -> dict[str, str]:
    """The same as the planner has them."""
    plan, params = decode_plan(setup, rollout), training_state(setup).params
    arguments = sampler_arguments(setup, plan, params, rollout)
    lower = on_mesh(setup.mesh)
    return {
        "prefill": lower(prefill.lower)(setup.model, plan, *arguments.prefill).as_text(),
        "decode": lower(decode.lower)(setup.model, plan, *arguments.decode).as_text(),
    }


def check_same(setup: Setup, rollout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, real = texts_of_plan(setup, rollout), texts_of_generate(setup, rollout, monkeypatch)
    for name, text in real.items():
        # One argument a line: texts are long, and what differs is to be read.
        pairs = zip(*(re.sub(r"(%arg)", r"\n\1", whole).splitlines() for whole in (planned[name], text)), strict=False)
        assert [(ours, theirs) for ours, theirs in pairs if ours != theirs][:3] == [], name
        assert planned[name] == text, name


def small(config: ConfigDict, layers: int) -> ConfigDict:
    """The recipe with fewer layers (0: all), which are lowered one by one."""
    if layers:
        config.model.n_layers = layers
    return config


@pytest.mark.more_but("quickstart-grpo-0")
@pytest.mark.parametrize(("name", "stage", "layers"), RECIPES)
def test_recipes(name: str, stage: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(stages_of(importlib.import_module(f"configs.{name}").get_config(), stage)[0], layers)
    check_same(setup_of(config, make_mesh({"fsdp": 8})), config.algorithm == "grpo", monkeypatch)


@pytest.mark.more_but("queue", "routes", "drawn depths", "exit", "carry", "thoughts")
@pytest.mark.parametrize("kind", SETTINGS)
def test_settings(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout, settings = SETTINGS[kind]
    config = changed("grpo", rl__prompts=8, rl__samples=2, **settings)
    setup = setup_of(config, make_mesh({"fsdp": 4, "data": 2}))
    if kind == "thoughts":
        setup = dataclasses.replace(setup, ending=Ending((5, 6, 6, 7), 2))
    check_same(setup, rollout, monkeypatch)


def test_a_setting_that_only_one_knew_of_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(changed("grpo", rl__prompts=8, rl__samples=2), make_mesh({"fsdp": 8}))
    other = setup_of(changed("grpo", rl__prompts=8, rl__samples=2, rl__max_new_tokens=7), make_mesh({"fsdp": 8}))
    planned, real = texts_of_plan(setup, True), texts_of_generate(other, True, monkeypatch)
    assert planned["decode"] != real["decode"]
