"""Rows that are learnt, answered and rolled out with the iterations that their task names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import rl.jobs.sample
from data.sources.batch import TokenRows
from infer.load import load_run
from infer.plan import PromptShape, plan_sampler
from infer.recurrence import Recurrence
from infer.rows import prompt_waves
from infer.sampling import Execution, SamplingParams
from infer.strategies import answer
from model import build
from model.depth import draw_depth
from settings.model_parts import RecurrentConfig
from store.records import read_metrics
from tests.model.common import random_params
from tests.sampled import generate
from tests.tiny_config import get_config
from tests.trunk import TINY, TOKENIZER, assert_trees_close, prompts_of, trees_equal
from train.algorithms import ALGORITHMS, BY_EXAMPLE, build_algorithm, check_without_data, update_of
from train.loop import by_hand, run
from train.objectives.losses import sft_objective
from train.setup import Setup, prepare

pytestmark = pytest.mark.usefixtures("one_device")


def config(kind: str = "sft", **changes: Any) -> ConfigDict:
    """A tiny recurrent run on rows of an automaton."""
    found = get_config(kind)
    found.model.update(depth="recurrent", n_layers=3)
    found.model.recurrent.update(mean=2, draw="task", grad_steps=3)
    found.data.update(task="automaton", pack=False, length=24)
    found.data.options = ConfigDict(dict(width=8, max_steps=3, test_max_steps=4))
    found.eval.update(depth="task", by="steps", max_new_tokens=9, examples=16, loss_batches=1)
    found.rl.update(max_new_tokens=9, max_prompt_length=0)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def test_a_run_learns_and_answers_at_the_depth_of_each_example(tmp_path: Path) -> None:
    result = run(config(eval__depths=(1,)), tmp_path / "run")
    final = result["evaluation"]
    steps = {int(name.rsplit("_", 1)[1]) for name in final if name.startswith("mean_depth_steps_")}
    assert steps == {1, 2, 3, 4}
    assert all(final[f"mean_depth_steps_{n}"] == n for n in steps)
    assert "accuracy_steps_4_at_depth_1" in final
    assert final["answer_loss"] != final["answer_loss_at_depth_1"]
    depths = [record["recurrent/depth"] for record in read_metrics(tmp_path / "run") if "recurrent/depth" in record]
    assert 1 < np.mean(depths) < 3


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    found = config(eval__examples=0, data__depth_jitter=1, data__depth_offset=1)
    run(found, tmp_path / "whole")
    with by_hand(found, tmp_path / "cut") as trainer:
        trainer.step()
    run(found, tmp_path / "cut")
    assert trees_equal(load_run(tmp_path / "whole").params, load_run(tmp_path / "cut").params)


def test_a_batch_of_depths_is_its_rows_one_by_one() -> None:
    """Loss and gradient; and whether it is cut into micro-batches changes nothing."""
    model = build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": {"draw": "task", "start": "zero"}})
    params, objective = random_params(model), sft_objective(model)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 12, (4, 10)), jnp.int32)
    ones = jnp.ones((4, 10), jnp.int32)
    rows = TokenRows(tokens=tokens, mask=ones * 1.0, positions=jnp.cumsum(ones, 1) - 1, segments=ones)
    depth = jnp.array([1, 2, 2, 4], jnp.int32)
    total = jax.jit(jax.grad(lambda p, rows: objective(p, rows, jax.random.key(0))[0]))
    whole = total(params, rows.replace(depth=depth))
    parts = [total(params, jax.tree.map(lambda x, n=n: x[n : n + 1], rows.replace(depth=depth))) for n in range(4)]
    assert_trees_close(whole, jax.tree.map(lambda *x: sum(x), *parts), 2e-4)
    with pytest.raises(ValueError, match="these rows have none"):
        objective(params, rows, jax.random.key(0))


def test_a_draw_by_the_task_is_none() -> None:
    with pytest.raises(ValueError, match="these rows have none"):
        draw_depth(RecurrentConfig(draw="task"), jax.random.key(0), 4)


def test_rollouts_run_at_the_depth_of_their_question(tmp_path: Path) -> None:
    found = config("grpo", rl__depth="task", rl__max_depth=5, data__depth_offset=1, data__depth_jitter=1)
    found.eval.examples = 0
    run(found, tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run") if "depth/mean" in record]
    assert all(2 <= record["depth/mean"] <= 5 and record["depth/std"] > 0 for record in records)
    # The update replays the depths: the ratio is 1.
    assert max(record["ratio_deviation/max"] for record in records) < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("grpo", {"rl__depth": "task", "rl__max_depth": 2}, r"to be thought about for 3 iterations .* allows 2"),
        ("grpo", {"rl__depth": "task", "data__task": "addition"}, "rl.depth should come from the task"),
        ("sft", {"data__task": "addition", "eval__depth": 0}, "its depth should come from the task"),
        ("sft", {"data__pack": True}, "data.pack=True puts several into one"),
        ("sft", {"eval__depth": "tusk"}, 'eval.depth is "task", "gate" or a number'),
        ("sft", {"model__depth": "stack"}, "eval.depth is for recurrent models"),
        ("grpo", {"rl__depth": "drawn"}, "found 'task'"),
        ("grpo", {"rl__depth": "task", "rl__carry": 1}, "does not go with rl.depth=task"),
        ("sft", {"algorithm": "preference"}, "the rows of algorithm=preference have no depth of their own"),
    ],
)
def test_what_has_no_depth_is_refused(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = config(kind, **changes)
    if found.data.task == "addition":
        found.data.options, found.eval.by = ConfigDict(), ""
    with pytest.raises(ValueError, match=words):
        run(found, tmp_path / "run")


@pytest.fixture(scope="module")
def drawn_by_task(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The setup of a tiny run."""
    return prepare(config(sample__max_new_tokens=9), tmp_path_factory.mktemp("run"), print)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - set(BY_EXAMPLE)))
def test_algorithms_whose_rows_have_no_depth_are_refused_up_front(drawn_by_task: Setup, name: str) -> None:
    """With the data, without them, and in a plan."""
    setup = dataclasses.replace(drawn_by_task, config=dataclasses.replace(drawn_by_task.config, algorithm=name))
    for look in (build_algorithm, check_without_data, *([] if name == "coconut" else [update_of])):
        with pytest.raises(ValueError, match=f"is for algorithm=sft or grpo: the rows of algorithm={name} have no"):
            look(setup)


@pytest.mark.parametrize("name", [*BY_EXAMPLE, "sample"])
def test_those_that_have_one_and_stages_that_train_nothing_are_not(drawn_by_task: Setup, name: str) -> None:
    check_without_data(
        dataclasses.replace(drawn_by_task, config=dataclasses.replace(drawn_by_task.config, algorithm=name))
    )


def test_samples_of_like_depth_are_seated_together() -> None:
    """Their order changes no sample."""
    model = build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}})
    prompts, depths = prompts_of(*[4, 5] * 4), np.array([4, 1, 3, 1, 4, 2, 1, 2])
    sampling = SamplingParams(4, n=1, execution=Execution(slots=4))
    planned = plan_sampler(model, PromptShape(8, 8), sampling, recurrence=Recurrence(depths, 4))
    mask = np.ones((8, 8), bool)
    [wave] = prompt_waves(np.ones((8, 8), np.int32), mask, planned, depths)
    np.testing.assert_array_equal(depths[wave.samples], np.sort(depths))
    params, key = random_params(model), jax.random.key(0)
    options = {"max_new_tokens": 4, "stop": (TOKENIZER.eos_id,), "depth": depths, "max_depth": 4}
    few, all_at_once = (generate(model, params, prompts, key, slots=slots, **options) for slots in (4, 0))
    np.testing.assert_array_equal(few.tokens, all_at_once.tokens)
    np.testing.assert_array_equal(few.depth.max(1), depths)


def test_a_sampling_stage_asks_at_the_depth_of_each_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def recorded(strategy: Any, model: Any, params: Any, asked: Any, key: Any) -> Any:
        seen.append(strategy.recurrence.depth)
        wanted = np.repeat([item["example"]["steps"] for item in asked], 2)
        np.testing.assert_array_equal(seen[-1], wanted)
        return answer(strategy, model, params, asked, key)

    monkeypatch.setattr(rl.jobs.sample, "answer", recorded)
    found = config(eval__examples=0)
    found.stages = ("first", "asked")
    found.stage.first = ConfigDict(dict(algorithm="sft", steps=2))
    asked = dict(depth="task", n=2, examples=6, least={}, max_new_tokens=9, finished=False)
    found.stage.asked = ConfigDict({"from": "first", "algorithm": "sample", "sample": asked})
    run(found, tmp_path)
    assert len(seen) == 1 and len(set(seen[0])) > 1
