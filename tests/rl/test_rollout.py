"""Rollouts as training batches: what is masked, that the first step is on policy, and that rewards are learned."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.pipeline import prompt_source
from data.sources import Example, Generated
from data.tasks.base import Verdict
from infer.sampler import Rollout
from rl.advantages import advantages
from rl.checks import complaints
from rl.grpo import grpo_objective
from rl.rollout import RolloutRules, RolloutSource, completion_start, statistics, training_batch
from tests.trunk import TOKENIZER, tiny, tiny_params, trees_equal
from train.losses import batch_logps
from train.state import new_state
from train.step import make_step

RULES = RolloutRules(4, 8, 1.0, 0, "group", "group", 1, 1e-6, "mean", 0, 0.0, 0.0)


@dataclass(frozen=True)
class Digits:
    """Prompts of different lengths; the reward is the share of one character in the answer."""

    wanted: str = "7"
    alphabet = TOKENIZER.alphabet
    splits = ("train",)

    def examples(self, split: str) -> Sequence[Example]:
        """Sixteen prompts."""
        return Generated(16, lambda i: {"prompt": "1+" * (1 + i % 3) + "="})

    def prompt(self, example: Example) -> str:
        """Such as 1+1+=."""
        return example["prompt"]

    def target(self, example: Example) -> str:
        """The wanted character."""
        return self.wanted

    def verify(self, example: Example, text: str) -> Verdict:
        """How much of the answer is what is wanted."""
        return Verdict(text.count(self.wanted) / max(len(text), 1), text, "counted")


def source(rules: RolloutRules = RULES, prompts: int = 3, **options: Any) -> RolloutSource:
    """A rollout source of the tiny model."""
    asked = prompt_source(Digits(), TOKENIZER, split="train", batch_size=prompts, seed=0)
    return RolloutSource(tiny(), asked, Digits(), TOKENIZER, rules, **({"seed": 5, "say": lambda _: None} | options))


@functools.cache
def first_batch() -> dict[str, Any]:
    """The batch of step 0 with three prompts and four samples of each."""
    return source().next(tiny_params(), 0)


def test_a_row_is_the_padded_prompt_and_the_completion() -> None:
    batch = first_batch()
    assert {k: v.dtype.name for k, v in batch.items()} == {
        **dict.fromkeys(("tokens", "positions", "segments"), "int32"),
        **dict.fromkeys(("mask", "old_logps", "advantages"), "float32"),
    }
    width = batch["tokens"].shape[1] - 8
    assert batch["mask"].shape == batch["tokens"].shape == (12, width + 8)
    assert completion_start(batch) == width - 1
    prompts = prompt_source(Digits(), TOKENIZER, split="train", batch_size=3, seed=0).next()
    for n, tokens in enumerate(batch["tokens"]):
        asked = prompts[n // 4]["tokens"]
        start, length = width - len(asked), int(batch["mask"][n].sum())
        assert tokens[start:width].tolist() == asked
        seen = np.zeros(width + 8, int)
        seen[start : width + length] = 1
        np.testing.assert_array_equal(batch["segments"][n], seen)
        np.testing.assert_array_equal(batch["positions"][n][seen > 0], np.arange(len(asked) + length))
        np.testing.assert_array_equal(np.flatnonzero(batch["mask"][n]), np.arange(width, width + length))
        assert not tokens[seen == 0].any()


def test_the_end_token_is_part_of_the_completion() -> None:
    batch = first_batch()
    width = batch["tokens"].shape[1] - 8
    ended = 0
    for tokens, mask in zip(batch["tokens"][:, width:], batch["mask"][:, width:], strict=True):
        answer = tokens[mask > 0]
        assert TOKENIZER.eos_id not in answer[:-1]
        ended += int(answer[-1] == TOKENIZER.eos_id)
        assert answer[-1] == TOKENIZER.eos_id or len(answer) == 8
    assert 0 < ended < 12, "the test needs rows that end and rows that are cut"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_step_is_on_policy_for_every_token(temperature: float) -> None:
    # Weights with the gain of a trained model: those of tiny_params amplify rounding from layer to layer.
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 0.7 * leaf, tiny_params())
    rollouts = source(replace(RULES, temperature=temperature))
    batch = jax.tree.map(jnp.asarray, rollouts.next(params, 0))
    start = completion_start(batch)
    logps = jax.jit(lambda p: batch_logps(tiny(), p, batch, temperature=temperature, start=start)[0])(params)
    mask = batch["mask"][:, start + 1 :]
    assert float(jnp.abs(jnp.where(mask > 0, jnp.exp(logps - batch["old_logps"]) - 1, 0)).max()) <= 1e-5
    objective = grpo_objective(tiny(), temperature=temperature)
    _, _, metrics = jax.jit(objective)(params, batch, jax.random.key(0))
    assert float(metrics["ratio_deviation/max"]) <= 1e-5
    wrong = jax.jit(grpo_objective(tiny(), temperature=1.7 - temperature))(params, batch, jax.random.key(0))
    assert float(wrong[2]["ratio_deviation/max"]) > 1e-2


def test_rewards_become_advantages_of_their_group() -> None:
    rollouts = source()
    batch = rollouts.next(tiny_params(), 0)
    records = rollouts.samples()
    rewards = np.array([record["reward"] for record in records], np.float32).reshape(3, 4)
    for record in records:
        assert record["reward"] == pytest.approx(Digits().verify({}, record["completion"]).score, rel=1e-6)
    assert len({record["prompt"] for record in records[:4]}) == 1
    want = advantages(jnp.asarray(rewards), baseline="group", scale="group")
    np.testing.assert_allclose(batch["advantages"].reshape(3, 4), want, atol=1e-6)
    assert rewards.std() > 0
    alone = source(replace(RULES, baseline="leave_one_out", scale="none")).next(tiny_params(), 0)
    want = advantages(jnp.asarray(rewards), baseline="leave_one_out", scale="none")
    np.testing.assert_allclose(alone["advantages"].reshape(3, 4), want, atol=1e-6)


def test_the_reference_is_the_start_and_its_kl_zero() -> None:
    batch = source(replace(RULES, temperature=0.7), reference=tiny_params()).next(tiny_params(), 0)
    mask = batch["mask"][:, -8:] > 0
    np.testing.assert_allclose(batch["ref_logps"][mask], batch["old_logps"][mask], atol=1e-5)
    objective = jax.jit(grpo_objective(tiny(), temperature=0.7, beta=0.1))
    _, _, metrics = objective(tiny_params(), batch, jax.random.key(0))
    assert float(metrics["kl"][0]) == pytest.approx(0, abs=1e-6)
    moved = jax.tree.map(lambda x: 1.1 * x, tiny_params())
    assert float(objective(moved, batch, jax.random.key(0))[2]["kl"][0]) > 1e-3
    assert "ref_logps" not in first_batch()


def test_the_entropy_metric_is_the_mean_over_completion_tokens() -> None:
    batch = jax.tree.map(jnp.asarray, first_batch())
    start = completion_start(batch)
    _, entropies, _ = jax.jit(lambda p: batch_logps(tiny(), p, batch, start=start))(tiny_params())
    _, _, metrics = jax.jit(grpo_objective(tiny()))(tiny_params(), batch, jax.random.key(0))
    mask = np.asarray(batch["mask"][:, start + 1 :]) > 0
    assert float(metrics["entropy"][0] / metrics["entropy"][1]) == pytest.approx(np.asarray(entropies)[mask].mean())


def test_noise_depends_on_seed_step_and_sample_alone() -> None:
    repeated, other_step, other_seed = source(), source(), source(seed=6)
    first = first_batch()["tokens"]
    np.testing.assert_array_equal(repeated.next(tiny_params(), 0)["tokens"], first)
    assert (other_step.next(tiny_params(), 1)["tokens"] != first).any()
    assert (other_seed.next(tiny_params(), 0)["tokens"] != first).any()
    np.testing.assert_array_equal(source(replace(RULES, slots=2)).next(tiny_params(), 0)["tokens"], first)


def test_a_restored_source_goes_on_where_it_was() -> None:
    whole, stopped, resumed = source(), source(), source()
    for step in range(2):
        whole.next(tiny_params(), step)
        stopped.next(tiny_params(), step)
    resumed.restore(stopped.state())
    for step in (2, 3):
        assert trees_equal(resumed.next(tiny_params(), step), whole.next(tiny_params(), step))


def test_statistics_count_what_was_sampled() -> None:
    rollout = Rollout(
        tokens=np.zeros((4, 6), np.int32),
        logps=np.zeros((4, 6), np.float32),
        mask=np.arange(6) < np.array([[2], [6], [4], [6]]),
        lengths=np.array([2, 6, 4, 6]),
        finished=np.array([True, False, True, False]),
        prompts=np.zeros((2, 8), np.int32),
        prompt_mask=np.arange(8) >= np.array([[5], [4]]),
        steps=9,
    )
    rewards = np.array([[1, 1], [0, 1]], np.float32)
    found = statistics(rollout, rewards, rewards, ["a", "a", "b", "c"])
    assert found == pytest.approx(
        {
            "reward": 0.75,
            "reward_std": 0.25,
            "frac_reward_zero_std": 0.5,
            "groups/all_right": 0.5,
            "groups/all_wrong": 0.0,
            "num_tokens": 18 + 2 * 3 + 2 * 4,
            "completions/mean_length": 4.5,
            "completions/min_length": 2,
            "completions/max_length": 6,
            "completions/mean_terminated_length": 3,
            "completions/min_terminated_length": 2,
            "completions/max_terminated_length": 4,
            "completions/clipped_ratio": 0.5,
            "completions/eos_rate": 0.5,
            "completions/unique_ratio": 0.75,
            "sampling/decode_steps": 9,
            "score": 0.75,
        }
    )
    batch = training_batch(rollout, np.array([1.0, -1, 0.5, 0]))
    np.testing.assert_array_equal(batch["segments"][3], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])


HEALTHY = {"completions/clipped_ratio": 0.2, "completions/eos_rate": 0.8, "frac_reward_zero_std": 0.5, "reward": 0.3}


@pytest.mark.parametrize(
    ("changes", "rollouts", "words"),
    [
        ({"completions/clipped_ratio": 1.0}, 1, "max_new_tokens"),
        ({"completions/eos_rate": 0.0}, 1, "end token"),
        ({"frac_reward_zero_std": 1.0}, 3, "every advantage is zero"),
        ({"reward": 0.0}, 3, "too hard"),
    ],
)
def test_what_learns_nothing_is_said_in_words(changes: dict[str, float], rollouts: int, words: str) -> None:
    history = [HEALTHY | changes] * rollouts
    [sentence] = complaints(history)
    assert words in sentence
    assert not complaints([HEALTHY] * rollouts)
    assert not complaints([HEALTHY | changes] * (rollouts + 1)), "it is said once"
    assert rollouts == 1 or not complaints([*history[1:], HEALTHY])


def test_the_source_says_its_complaints() -> None:
    said: list[str] = []
    silent = source(replace(RULES, max_new_tokens=1), say=said.append)
    silent.next(jax.tree.map(lambda x: 0 * x, tiny_params()) | {"embed": tiny_params()["embed"]}, 4)
    assert any(sentence.startswith("step 4: every completion was cut") for sentence in said)


def test_grpo_learns_what_is_rewarded() -> None:
    rules = replace(RULES, samples=8, max_new_tokens=4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = make_step(grpo_objective(tiny()), optimizer)
    state = new_state(jax.tree.map(jnp.copy, tiny_params()), optimizer, seed=0)
    rollouts, rewards = source(rules, prompts=4), []
    for n in range(30):
        state, _ = step(state, jax.tree.map(jnp.asarray, rollouts.next(state.params, n)))
        rewards.append(rollouts.stats()["reward"])
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-5:]) > 0.8
