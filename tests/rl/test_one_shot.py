"""Learning from one example: its copies are groups of their own, and without variance there is nothing to learn."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.examples import Example
from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.tasks import build_task
from data.tasks.base import Verdict
from rl.advantages import advantages
from rl.grpo import grpo_objective
from rl.history import example_key, read_history
from rl.rollout import RolloutOptions, RolloutWorker
from rl.select import main
from rl.source import RolloutSource
from store.records import read_lines
from tests.rl.test_rollout import RULES, Digits
from tests.tiny_config import get_config
from tests.trunk import TOKENIZER, tiny, tiny_params, trees_equal
from train.loop import run
from train.optimizer import make_optimizer
from train.state import new_state
from train.step import make_step

COPIES = 12
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "one_shot_rlvr"


@dataclass(frozen=True)
class Hopeless(Digits):
    """Every answer is wrong."""

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 0."""
        return Verdict(0.0, text, "wrong")


def repeated(task: Digits, folder: Path, log: Any = lambda step, accuracies: None) -> RolloutSource:
    """A source of one prompt in a file, as every group of its batches."""
    path = folder / "one.jsonl"
    path.write_text(json.dumps({"prompt": "1+1+="}) + "\n")
    asked = prompt_source(task, TOKENIZER, PromptRows(split=str(path), batch_size=COPIES))
    worker = RolloutWorker(tiny(), asked, task, TOKENIZER, RULES, RolloutOptions(seed=5, say=lambda _: None))
    return RolloutSource(worker, RULES, seed=5, log=log)


def test_copies_of_a_prompt_are_groups_of_their_own(tmp_path: Path) -> None:
    logged: list[Any] = []
    rollouts = repeated(Digits(), tmp_path, lambda *entry: logged.append(entry))
    batch = rollouts.next(tiny_params(), 0)
    rows = rollouts.samples()
    assert {row["prompt"] for row in rows} == {"1+1+="}
    rewards = np.array([row["reward"] for row in rows], np.float32).reshape(COPIES, RULES.samples)
    found = batch.advantages.reshape(rewards.shape)
    np.testing.assert_allclose(found, advantages(jnp.asarray(rewards)), atol=1e-6)
    one_group = advantages(jnp.asarray(rewards.reshape(1, -1))).reshape(rewards.shape)
    assert float(jnp.abs(found - one_group).max()) > 0.1, "one group of all copies would be another rule"
    assert len(np.unique(batch.tokens, axis=0)) > COPIES, "each copy has samples of its own"
    assert logged == [(0, {example_key({"prompt": "1+1+="}): pytest.approx(rewards.mean())})]


@pytest.mark.more_but("0.0")
@pytest.mark.parametrize("entropy_coef", [0.0, 0.001])
def test_without_variance_only_the_entropy_bonus_moves_the_model(entropy_coef: float, tmp_path: Path) -> None:
    """A prompt that is never right has no gradient: bit for bit the same parameters after three steps of AdamW."""
    config = get_config("grpo").optimizer
    config.update(lr=0.1, weight_decay=0.0)
    optimizer = make_optimizer(config, 3, axes=tiny().axes())
    start = jax.tree.map(jnp.copy, tiny_params())
    state = new_state(jax.tree.map(jnp.copy, start), optimizer, seed=0)
    step = make_step(grpo_objective(tiny(), entropy_coef=entropy_coef), optimizer)
    rollouts = repeated(Hopeless(), tmp_path)
    for n in range(3):
        batch = rollouts.next(state.params, n)
        assert not batch.advantages.any()
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
        assert (float(metrics["grad_norm"]) == 0) == (entropy_coef == 0)
    assert trees_equal(state.params, start) == (entropy_coef == 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data of one-shot RLVR is not in {SHARED}")
def test_the_recipe_finds_the_published_rows() -> None:
    recipe = importlib.import_module("configs.grpo.one_shot").get_config()
    task = build_task("math", path=str(SHARED))
    assert {recipe.data.split, recipe.eval.split, "dsr_sub"} <= set(task.splits)
    rows = task.examples(recipe.data.split)
    assert len(rows) == recipe.rl.prompts == 128
    assert {(row["index"], row["answer"], example_key(row)) for row in rows} == {(124, "12.8", example_key(rows[0]))}
    assert task.prompt(rows[0]).startswith("The pressure") and task.prompt(rows[0]).rstrip().endswith("\\boxed{}.")


@pytest.mark.more
def test_train_rank_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The three steps of the paper on the smallest run; the second run learns from nothing but what was chosen."""
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    config = get_config("grpo")
    run(config, tmp_path / "pool")
    history = read_history(tmp_path / "pool")
    assert sum(map(len, history.values())) <= 4 * 2 and len(history) > 2
    capsys.readouterr()
    out = tmp_path / "chosen.jsonl"
    assert main([str(tmp_path / "pool"), "--ranks=1", f"--out={out}"]) == 0
    [chosen] = [json.loads(line) for line in out.read_text().splitlines()]
    config.data.split = str(out)
    run(config, tmp_path / "one")
    assert [*read_history(tmp_path / "one")] == [example_key(chosen)]
    task = build_task("addition", **config.data.options)
    written = [row for row in read_lines(tmp_path / "one" / "samples.jsonl") if row["kind"] == "rollout"]
    assert {row["prompt"] for row in written} == {task.prompt(chosen)}


def test_a_rollout_in_use_keeps_its_accuracies(tmp_path: Path) -> None:
    rules = replace(RULES, minibatches=2)
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(batch_size=2, seed=0))
    worker = RolloutWorker(tiny(), asked, Digits(), TOKENIZER, rules, RolloutOptions(seed=5, say=lambda _: None))
    logged: list[int] = []
    rollouts = RolloutSource(worker, rules, seed=5, log=lambda step, accuracies: logged.append(step))
    for step in range(4):
        rollouts.next(tiny_params(), step)
    assert logged == [0, 2], "a rollout is told of once, with its first update"
    kept = json.loads(json.dumps(rollouts.state()))["kept"]["rollout"]
    assert kept["accuracies"] and set(kept["accuracies"]) <= {example_key(row) for row in Digits().examples("train")}
