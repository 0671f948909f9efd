"""The miniature of SFT against reinforcement learning: both branches cost the same and begin at one model."""

from __future__ import annotations

import pytest

from configs.ablations import general_points
from data.sources.text import sft_tokens
from data.tasks import build_task
from data.tokenizers.characters import CharTokenizer


@pytest.mark.parametrize("steps", [3, 180])
def test_both_branches_cost_the_same(steps: int) -> None:
    tokens, params = 5_000, 110_000
    wanted = general_points.flops(params, learnt=steps * tokens, sampled=steps * tokens)
    assert wanted == params * steps * tokens * 8
    assert general_points.flops(params, learnt=general_points.sft_steps(steps) * tokens) == wanted


def test_a_step_is_as_many_rows_in_both() -> None:
    config = general_points.get_config()
    assert config.data.batch_size == config.rl.prompts * config.rl.samples
    assert config.rl.minibatches == config.rl.epochs == 1, "every sampled token is learnt from once"


def test_every_demonstration_fits_and_can_be_sampled() -> None:
    config = general_points.get_config()
    task = build_task(config.data.task, **config.data.options)
    tokenizer = CharTokenizer(task.alphabet)
    for split in ("train", "all"):
        rows = [sft_tokens(task, tokenizer, example) for example in task.examples(split)[:400]]
        assert max(len(prompt) + len(answer) for prompt, answer in rows) <= config.data.length
        assert max(len(answer) for _, answer in rows) <= config.rl.max_new_tokens


def test_the_arms_differ_in_start_and_algorithm_alone() -> None:
    runs = list(general_points.sweep())
    assert len(runs) == 12
    by_name = {run["name"]: run for run in runs}
    for start in ("one", "both"):
        sft, grpo = by_name[f"sft-{start}"], by_name[f"grpo-{start}"]
        assert sft["init_from"] == grpo["init_from"] == f"{general_points.FOLDER}/{start}"
        assert set(grpo) - set(sft) == {"algorithm", "steps"}
