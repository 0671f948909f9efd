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

from data.sources.examples import Example, Generated
from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.tasks.base import Verdict
from infer.sampler import Rollout
from rl.advantages import advantages
from rl.batch import RolloutRows, training_batch
from rl.experience import Experience, statistics
from rl.grpo import grpo_objective, watcher
from rl.rewards import Sample, Scores, build_rewards, compose
from rl.rollout import RolloutOptions, RolloutWorker
from rl.rules import RolloutRules
from rl.source import RolloutSource
from tests.trunk import TOKENIZER, tiny, tiny_params, trees_equal
from train.completions import completion_logps, joined_rows
from train.state import new_state
from train.step import make_step

RULES = RolloutRules(prompts=3, samples=4, max_new_tokens=8, share_prompts=False, widths=1)


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


def source(rules: RolloutRules = RULES, prompts: int = 3, n_layers: int = 1, **options: Any) -> RolloutSource:
    """A rollout source of the tiny model."""
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=prompts, seed=0))
    given = {"seed": 5, "say": lambda _: None} | options
    worker = RolloutWorker(tiny(n_layers), asked, Digits(), TOKENIZER, rules, RolloutOptions(**given))
    return RolloutSource(worker, rules, seed=given["seed"], steps=20)


@functools.cache
def first_batch() -> RolloutRows:
    """The batch of step 0 with three prompts and four samples of each."""
    return source().next(tiny_params(), 0)


def test_a_row_is_the_padded_prompt_and_the_completion() -> None:
    batch = first_batch()
    present = {k: v.dtype.name for k, v in vars(batch).items() if v is not None and k != "shared"}
    assert present == {
        **dict.fromkeys(("tokens", "lengths", "prompt_of"), "int32"),
        **dict.fromkeys(("mask", "old_logps", "advantages"), "float32"),
    }
    assert batch.mask.shape == batch.tokens.shape == batch.old_logps.shape == (12, 8)
    rows = jax.tree.map(np.asarray, joined_rows(batch))
    assert {k: v.dtype.name for k, v in vars(rows).items() if isinstance(v, np.ndarray)} == {
        **dict.fromkeys(("tokens", "positions", "segments"), "int32"),
        "mask": "float32",
    }
    width = batch.shared.tokens.shape[1]
    assert rows.mask.shape == rows.tokens.shape == (12, width + 8)
    prompts = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=3, seed=0)).next()
    for n, tokens in enumerate(rows.tokens):
        asked = prompts[n // 4]["tokens"]
        start, length = width - len(asked), int(rows.mask[n].sum())
        assert tokens[start:width].tolist() == asked
        seen = np.zeros(width + 8, int)
        seen[start : width + length] = 1
        np.testing.assert_array_equal(rows.segments[n], seen)
        np.testing.assert_array_equal(rows.positions[n][seen > 0], np.arange(len(asked) + length))
        np.testing.assert_array_equal(np.flatnonzero(rows.mask[n]), np.arange(width, width + length))
        assert not tokens[seen == 0].any()


def test_the_end_token_is_part_of_the_completion() -> None:
    batch = first_batch()
    ended = 0
    for tokens, mask in zip(np.asarray(batch.tokens), np.asarray(batch.mask), strict=True):
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
    logps = jax.jit(lambda p: completion_logps(tiny(), p, batch, temperature)[0])(params)
    assert float(jnp.abs(jnp.where(batch.mask > 0, jnp.exp(logps - batch.old_logps) - 1, 0)).max()) <= 1e-5
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
    np.testing.assert_allclose(batch.advantages.reshape(3, 4), want, atol=1e-6)
    assert rewards.std() > 0
    alone = source(replace(RULES, baseline="leave_one_out", scale="none")).next(tiny_params(), 0)
    want = advantages(jnp.asarray(rewards), baseline="leave_one_out", scale="none")
    np.testing.assert_allclose(alone.advantages.reshape(3, 4), want, atol=1e-6)


def test_the_reference_is_the_start_and_its_kl_zero() -> None:
    batch = source(replace(RULES, temperature=0.7), reference=tiny_params()).next(tiny_params(), 0)
    mask = batch.mask > 0
    np.testing.assert_allclose(batch.ref_logps[mask], batch.old_logps[mask], atol=1e-5)
    objective = jax.jit(grpo_objective(tiny(), temperature=0.7, beta=0.1))
    _, _, metrics = objective(tiny_params(), batch, jax.random.key(0))
    assert float(metrics["kl"][0]) == pytest.approx(0, abs=1e-6)
    moved = jax.tree.map(lambda x: 1.1 * x, tiny_params())
    assert float(objective(moved, batch, jax.random.key(0))[2]["kl"][0]) > 1e-3
    assert first_batch().ref_logps is None


def test_the_entropy_metric_is_the_mean_over_completion_tokens() -> None:
    batch = jax.tree.map(jnp.asarray, first_batch())
    entropies = jax.jit(lambda p: completion_logps(tiny(), p, batch)[1])(tiny_params())
    _, _, metrics = jax.jit(grpo_objective(tiny()))(tiny_params(), batch, jax.random.key(0))
    mask = np.asarray(batch.mask) > 0
    assert float(metrics["entropy"][0] / metrics["entropy"][1]) == pytest.approx(np.asarray(entropies)[mask].mean())


def test_only_a_rollouts_first_update_is_watched() -> None:
    """Later updates and stale rollouts differ from their sampler as they should; and three rollouts are three."""
    said: list[str] = []
    watch = watcher(said.append)
    gap = {"sampling/sampling_logp_difference/max": 2.0}
    for step in range(6):
        first = {"frac_reward_zero_std": 1.0, "rollout/staleness": 2.0}
        watch(step, (first if step % 2 == 0 else {"rollout/update": 1.0}) | gap)
        assert len(said) == (step >= 4)
    assert "every group had equal rewards" in said[0]
    watch(6, gap)
    assert "differ by 2 nats" in said[1]


def test_noise_depends_on_seed_step_and_sample_alone() -> None:
    repeated, other_step, other_seed = source(), source(), source(seed=6)
    first = np.asarray(first_batch().tokens)
    np.testing.assert_array_equal(repeated.next(tiny_params(), 0).tokens, first)
    assert (np.asarray(other_step.next(tiny_params(), 1).tokens) != first).any()
    assert (np.asarray(other_seed.next(tiny_params(), 0).tokens) != first).any()
    np.testing.assert_array_equal(source(replace(RULES, slots=2)).next(tiny_params(), 0).tokens, first)


def test_a_restored_source_goes_on_where_it_was() -> None:
    whole, stopped, resumed = source(), source(), source()
    for step in range(2):
        whole.next(tiny_params(), step)
        stopped.next(tiny_params(), step)
    resumed.restore(stopped.state())
    for step in (2, 3):
        assert trees_equal(resumed.next(tiny_params(), step), whole.next(tiny_params(), step))


def experience(rollout: Rollout, rewards: list[list[float]], texts: list[str]) -> Experience:
    """Judged samples whose reward is their score."""
    scores = np.array(rewards, np.float32)
    total = scores.reshape(-1)
    verdicts = [Verdict(float(score), None, "given") for score in total]
    scored = Scores(total, {"accuracy": total}, {"accuracy": 0}, ())
    return Experience([{"prompt": str(p)} for p in range(len(rewards))], rollout, texts, verdicts, scored, scores)


def test_statistics_count_what_was_sampled() -> None:
    rollout = Rollout(
        tokens=np.zeros((4, 6), np.int32),
        logps=np.zeros((4, 6), np.float32),
        mask=np.arange(6) < np.array([[2], [6], [4], [6]]),
        lengths=np.array([2, 6, 4, 6]),
        finished=np.array([True, False, True, False]),
        prompts=np.zeros((2, 8), np.int32),
        prompt_mask=np.arange(8) >= np.array([[5], [4]]),
        group_of=np.repeat([0, 1], 2),
        steps=9,
    )
    found = statistics(experience(rollout, [[1, 1], [0, 1]], ["a", "a", "b", "c"]))
    assert found == pytest.approx(
        {
            "rewards/accuracy/mean": 0.75,
            "rewards/accuracy/std": np.std([1, 1, 0, 1]),
            "rewards/accuracy/errors": 0,
            "verify/timeouts": 0,
            "reward": 0.75,
            "reward_std": 0.25,
            "frac_reward_zero_std": 0.5,
            "groups/all_right": 0.5,
            "groups/all_wrong": 0.0,
            "num_samples": 4,
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
    np.testing.assert_array_equal(joined_rows(batch).segments[3], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])


def test_a_run_is_watched_and_said_once_what_learns_nothing() -> None:
    said: list[str] = []
    watch = watcher(said.append)
    for step in range(6):
        watch(step, {"completions/clipped_ratio": 1.0, "entropy": 2.0 if step < 5 else 0.01})
    assert len(said) == 1
    assert said[0].startswith("step 0: every completion was cut")
    for step in range(6, 12):
        watch(step, {"completions/clipped_ratio": 0.5, "entropy": 0.01})
    assert len(said) == 2
    assert "entropy fell from 2 to 0.01" in said[1]


def test_the_reference_follows_the_model_and_is_kept_with_the_checkpoint() -> None:
    rules = replace(RULES, sync_every=2, track_kl=True)
    moved = jax.tree.map(lambda x: 1.1 * x, tiny_params())
    rollouts = source(rules, reference=tiny_params())
    gaps = []
    for step in range(3):
        batch = rollouts.next(moved, step)
        mask = np.asarray(batch.mask) > 0
        gaps.append(float(np.abs(np.asarray(batch.ref_logps - batch.old_logps))[mask].max()))
    assert min(gaps[:2]) > 1e-2
    assert gaps[2] < 1e-4, "after two updates the reference is the model"
    resumed = source(rules, reference=tiny_params())
    resumed.restore(rollouts.state())
    resumed.restore_arrays(rollouts.arrays())
    assert trees_equal(resumed.next(moved, 3), rollouts.next(moved, 3))
    assert not source(reference=tiny_params()).arrays()


def test_only_the_share_of_tokens_with_the_highest_entropies_is_learnt() -> None:
    batch = source(replace(RULES, entropy_share=0.25), n_layers=2).next(tiny_params(2), 0)
    on_device = jax.tree.map(jnp.asarray, batch)
    entropies = np.asarray(jax.jit(lambda p: completion_logps(tiny(2), p, on_device)[1])(tiny_params(2)))
    mask = np.asarray(batch.mask) > 0
    kept = np.asarray(batch.weights) > 0
    # The four samples of a prompt begin at the same entropy, and ties are kept.
    assert 0.25 * mask.sum() <= kept.sum() <= 0.25 * mask.sum() + 4
    assert entropies[kept].min() >= entropies[mask & ~kept].max()
    loss = jax.jit(grpo_objective(tiny(2)))
    plain = on_device.replace(weights=None)
    assert float(loss(tiny_params(2), on_device, jax.random.key(0))[0]) != pytest.approx(
        float(loss(tiny_params(2), plain, jax.random.key(0))[0]), rel=1e-3
    )


def test_the_entropy_bonus_adapts_and_resumes() -> None:
    rules = replace(RULES, entropy_target=10.0, entropy_step=0.5, entropy_max=0.8)
    rollouts = source(rules)
    found = [rollouts.next(tiny_params(), step).entropy_coef for step in range(3)]
    assert [set(each.tolist()) for each in found] == [{np.float32(0.5)}, {np.float32(0.8)}, {np.float32(0.8)}]
    resumed = source(rules)
    resumed.restore(rollouts.state())
    assert trees_equal(resumed.next(tiny_params(), 3), rollouts.next(tiny_params(), 3))
    assert rollouts.stats()["entropy_coef"] == pytest.approx(0.8)
    quiet = source(replace(rules, entropy_target=1e-6))
    assert not quiet.next(tiny_params(), 0).entropy_coef.any(), "above the target there is no bonus"
    batch = jax.tree.map(jnp.asarray, rollouts.next(tiny_params(), 4))
    fixed = batch.replace(entropy_coef=None)
    carried = jax.jit(grpo_objective(tiny()))(tiny_params(), batch, jax.random.key(0))[0]
    given = jax.jit(grpo_objective(tiny(), entropy_coef=0.8))(tiny_params(), fixed, jax.random.key(0))[0]
    assert float(carried) == pytest.approx(float(given), rel=1e-6)


def test_several_rewards_are_weighed_and_told_apart() -> None:
    scorer = build_rewards({"accuracy": 1.0, "overlong": {"weight": 0.5, "buffer": 6}})
    said: list[str] = []
    rollouts = source(scorer=scorer, say=said.append)
    rollouts.next(tiny_params(), 0)
    stats, rows = rollouts.stats(), rollouts.samples()
    for row in rows:
        parts = row["rewards"]
        assert row["reward"] == pytest.approx(parts["accuracy"] + 0.5 * parts["overlong"])
        assert parts["overlong"] == pytest.approx(min(0, (8 - 6 - row["tokens"]) / 6))
    assert stats["rewards/overlong/mean"] == pytest.approx(np.mean([row["rewards"]["overlong"] for row in rows]))
    assert stats["score"] == pytest.approx(np.mean([row["rewards"]["accuracy"] for row in rows]))
    assert not said


def test_a_reward_that_cannot_be_computed_is_named_once() -> None:
    def with_digit(text: str) -> bool:
        return any(char.isdigit() for char in text)

    def broken(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
        if any(map(with_digit, (sample.text for sample in samples))):
            raise RuntimeError("no digits here")
        return np.ones(len(samples), np.float32)

    said: list[str] = []
    rollouts = source(prompts=6, scorer=compose({"broken": broken}), say=said.append)
    for step in range(3):
        rollouts.next(tiny_params(), step)
    counted = rollouts.stats()["rewards/broken/errors"]
    assert counted == sum(with_digit(row["completion"]) for row in rollouts.samples())
    assert len(said) == 1
    assert "no digits here" in said[0]


def test_grpo_learns_what_is_rewarded() -> None:
    rules = replace(RULES, samples=8, max_new_tokens=4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = make_step(grpo_objective(tiny(2)), optimizer)
    state = new_state(jax.tree.map(jnp.copy, tiny_params(2)), optimizer, seed=0)
    rollouts, rewards = source(rules, prompts=4, n_layers=2), []
    for n in range(30):
        state, _ = step(state, jax.tree.map(jnp.asarray, rollouts.next(state.params, n)))
        rewards.append(rollouts.stats()["reward"])
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-5:]) > 0.8
