"""Advantages of tokens, a KL in the reward and importance weights: from the rules of a run to its batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.advantages import advantages
from rl.batch import RolloutRows
from rl.objectives import importance_weights
from rl.returns import estimate, kl_in_reward, reinforce_pp, reinforce_pp_baseline, reward_at_end
from settings.rl import RLConfig
from store.records import read_metrics
from tests.rl.test_rollout import RULES, source
from tests.tiny_config import get_config
from tests.trunk import tiny, tiny_params
from train.completions import completion_logps
from train.loop import run

REWARDS = jnp.array([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
MASK = (jnp.arange(5) < jnp.array([[5], [2], [3], [5], [1], [4]])).astype(jnp.float32)
LOGPS, REFERENCE = (jax.random.normal(jax.random.key(seed), (6, 5)) - 2 for seed in (0, 1))


def of_rules(**rules: Any) -> np.ndarray:
    """Advantages with what a run's worker has at hand."""
    return np.asarray(
        estimate(REWARDS, MASK, RLConfig(**{"epsilon": 1e-6} | rules), old_logps=LOGPS, ref_logps=REFERENCE)
    )


def test_each_name_is_its_function() -> None:
    np.testing.assert_array_equal(of_rules(), advantages(REWARDS, epsilon=1e-6).reshape(-1))
    charged = kl_in_reward(REWARDS.reshape(-1), LOGPS, REFERENCE, MASK, beta=0.3)
    end = reward_at_end(REWARDS.reshape(-1), MASK)
    found = of_rules(estimator="reinforce_pp", kl_in="reward", beta=0.3, gamma=0.9)
    np.testing.assert_array_equal(found, reinforce_pp(charged, MASK, gamma=0.9, epsilon=1e-6))
    np.testing.assert_array_equal(of_rules(estimator="reinforce_pp"), reinforce_pp(end, MASK, epsilon=1e-6))
    sums = charged.sum(1).reshape(REWARDS.shape)
    found = of_rules(estimator="reinforce_pp_baseline", kl_in="reward", beta=0.3)
    np.testing.assert_array_equal(found, reinforce_pp_baseline(sums, MASK, epsilon=1e-6))
    found = of_rules(kl_in="reward", beta=0.3, baseline="leave_one_out", scale="none")
    np.testing.assert_array_equal(found, advantages(sums, baseline="leave_one_out", scale="none").reshape(-1))
    with pytest.raises(ValueError, match="needs old_logps and ref_logps"):
        estimate(REWARDS, MASK, RLConfig(kl_in="reward", beta=0.1))


def masked_logps(params: Any, batch: RolloutRows) -> tuple[np.ndarray, np.ndarray]:
    """The trainer's log-probs of the completions and their mask [N, T]."""
    mask = np.asarray(batch.mask)
    return np.asarray(jax.jit(lambda p: completion_logps(tiny(), p, batch)[0])(params)) * mask, mask


def test_a_rollout_carries_advantages_of_tokens() -> None:
    """Those of its rewards and of the KL to the reference, and one figure for each sample in its record."""
    rules = replace(RULES, estimator="reinforce_pp", kl_in="reward", beta=0.2, gamma=0.95)
    reference = jax.tree.map(lambda x: 1.1 * x, tiny_params())
    rollouts = source(rules, reference=reference)
    batch, records = rollouts.next(tiny_params(), 0), rollouts.samples()
    rewards = jnp.array([record["reward"] for record in records])
    ref, mask = masked_logps(reference, batch)
    np.testing.assert_allclose(batch.ref_logps * mask, ref, atol=1e-5)
    charged = kl_in_reward(rewards, batch.old_logps, batch.ref_logps, jnp.asarray(mask), beta=0.2)
    want = np.asarray(reinforce_pp(charged, jnp.asarray(mask), gamma=0.95, epsilon=RULES.epsilon))
    np.testing.assert_allclose(batch.advantages, want, atol=1e-5)
    told = [record["advantage"] for record in records]
    np.testing.assert_allclose(told, (want * mask).sum(1) / mask.sum(1), atol=1e-5)


def test_importance_weights_lead_from_the_sampler_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler whose log-probs are off: the trainer's stand in their place, and the difference is in the weights."""
    plain = source().next(tiny_params(), 0)
    gap = np.random.default_rng(0).normal(0, 0.7, plain.old_logps.shape).astype(np.float32)

    def shifted(*args: Any, **options: Any) -> Any:
        found = generate(*args, **options)
        return replace(found, logps=(found.logps + gap) * found.mask)

    from rl import rollout

    generate = rollout.generate
    monkeypatch.setattr(rollout, "generate", shifted)
    rules = replace(RULES, importance_cap=1.5, importance_low=0.5, importance_high=3.0)
    batch = source(rules).next(tiny_params(), 0)
    own, mask = masked_logps(tiny_params(), batch)
    np.testing.assert_allclose(batch.old_logps, own, atol=1e-5)
    sampled = (plain.old_logps + gap) * mask
    want = importance_weights(jnp.asarray(own), jnp.asarray(sampled), jnp.asarray(mask), cap=1.5, keep=(0.5, 3.0))
    np.testing.assert_allclose(batch.weights, want, atol=1e-4)
    assert 0 < (np.asarray(batch.weights) == 0)[mask > 0].mean() < 0.5 and batch.weights.max() == 1.5


@pytest.mark.more
@pytest.mark.parametrize(
    "flags",
    [
        {"estimator": "reinforce_pp", "kl_in": "reward", "beta": 0.01},
        {"estimator": "reinforce_pp_baseline", "importance_cap": 2.0, "minibatches": 2},
    ],
)
def test_a_run_takes_the_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: dict[str, Any]) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    config = get_config("grpo")
    config.steps = 2
    config.rl.update(flags)
    run(config, tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert len(records) == 2 and all(np.isfinite(record["loss"]) for record in records)
