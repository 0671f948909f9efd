"""On-policy distillation in the one loop: the teacher's opinion of every token, and a student that comes nearer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.thoughts import NO_ENDING
from infer.load import load_run
from rl.teaching import RolloutTeacher, taught
from settings.rl import RLConfig
from store.records import read_metrics
from tests.sampled import generate
from tests.tiny_config import get_config
from tests.trunk import TOKENIZER, forward, prompts_of, tiny, tiny_params, trees_equal
from train.loop import by_hand, run

PROMPTS = prompts_of(3, 5)


@pytest.fixture(scope="module")
def teacher(one_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    found = get_config("sft")
    found.steps, found.model.d_model = 60, 48
    run(found, folder)
    return folder


def config(teacher: str, **changes: Any) -> ConfigDict:
    found = get_config("grpo")
    found.rl.teacher, found.steps = teacher, 4
    found.rl.rewards = ConfigDict({"accuracy": 0.0})
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def test_the_opinion_of_every_token() -> None:
    """Of the student itself it is nothing; behind another prompt it is that of whole passes there."""
    key = jax.random.key(0)
    rollout = generate(tiny(), tiny_params(), PROMPTS, key, max_new_tokens=6, n=2, stop=(TOKENIZER.eos_id,))
    rules = RLConfig(teacher="x", teacher_coef=2.0)
    same = RolloutTeacher(tiny(), None, lambda example: PROMPTS[example["n"]], NO_ENDING)
    logps = same.logps(tiny_params(), [{"n": 0}, {"n": 1}], rollout)
    gains, told = taught(np.ones(4), rollout, logps, rules)
    np.testing.assert_allclose(gains, rollout.mask.astype(float), atol=1e-4)
    assert abs(told["teacher/kl"]) < 1e-4
    longer = RolloutTeacher(tiny(), None, lambda example: [3, 4, *PROMPTS[example["n"]]], NO_ENDING)
    logps = longer.logps(tiny_params(), [{"n": 0}, {"n": 1}], rollout)
    ids = np.array([[3, 4, *PROMPTS[1], *rollout.tokens[3]]])
    whole = np.asarray(jax.nn.log_softmax(forward(tiny(), tiny_params(), ids)))[0]
    start = len(PROMPTS[1]) + 2
    wanted = [whole[start - 1 + t, rollout.tokens[3, t]] for t in range(rollout.lengths[3])]
    np.testing.assert_allclose(logps[3, : rollout.lengths[3]], wanted, atol=1e-4)
    gains, _ = taught(np.zeros(4), rollout, logps, rules)
    np.testing.assert_allclose(gains, 2 * (logps - rollout.logps) * rollout.mask, atol=1e-5)


def test_a_student_comes_nearer_and_goes_on_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    found = config(str(teacher), steps=16, optimizer__lr=1e-2)
    found.rl.update(prompts=4, samples=4)
    run(found, tmp_path / "whole")
    told = [record["teacher/kl"] for record in read_metrics(tmp_path / "whole") if "teacher/kl" in record]
    assert np.mean(told[-3:]) < 0.7 * told[0]
    with by_hand(found, tmp_path / "cut") as trainer:
        for _ in range(3):
            trainer.step()
    run(found, tmp_path / "cut")
    assert trees_equal(load_run(tmp_path / "whole").params, load_run(tmp_path / "cut").params)


@pytest.mark.more
@pytest.mark.parametrize("who", ["self", "start"])
def test_a_privileged_self_is_a_teacher(one_device: Any, tmp_path: Path, who: str) -> None:
    """OPSD: the same model, which is told the answer first."""
    run(config(who, rl__teacher_prompt="{target}{prompt}", steps=2), tmp_path / "run")
    assert read_metrics(tmp_path / "run")[0]["teacher/kl"] != 0


@pytest.mark.more_but("recurrent")
@pytest.mark.parametrize("kind", ["moe", "recurrent"])
def test_the_student_may_be_another_architecture(teacher: Path, tmp_path: Path, kind: str) -> None:
    found = config(str(teacher), steps=1)
    if kind == "moe":
        found.model.ffn = "moe"
        found.model.moe.update(n_experts=4, top_k=2, d_expert=16)
    else:
        found.model.update(n_layers=3, depth="recurrent")
        found.model.recurrent.update(mean=2)
    run(found, tmp_path / "run")
    assert read_metrics(tmp_path / "run")[0]["teacher/advantage"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl__temperature": 0.7}, "rl.teacher compares log-probs of temperature 1"),
        ({"rl__teacher_prompt": "x"}, "must hold {prompt}"),
        ({"rl__teacher": "self"}, "agrees with the student in everything"),
        ({"tokenizer__kind": "byte"}, "another vocabulary"),
        ({"rl__teacher": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_wrong_settings(teacher: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(config(str(teacher), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
