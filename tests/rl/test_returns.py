"""Rewards per token and what is made of them: golden REINFORCE++ values, and sums written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.returns import kl_in_reward, reinforce_pp, reinforce_pp_baseline, returns_to_go, reward_at_end
from tests.rl.golden import ARRAYS, cases

GOLDEN = [case for case in cases("advantages_expected") if "token_whitened" in case[2]]


BY_DTYPE = [(*case, "float64") for case in GOLDEN] + [(*case, "float32") for case in GOLDEN if case[0] == "kept"]


from_the_end = jax.jit(lambda rewards, mask: reinforce_pp(reward_at_end(rewards.reshape(-1), mask), mask))
from_the_group = jax.jit(reinforce_pp_baseline)


@pytest.mark.parametrize(("file", "case", "rule", "dtype"), BY_DTYPE)
def test_golden(file: str, case: str, rule: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        rewards, mask = (jnp.asarray(ARRAYS[file][f"{case}/{name}"], dtype) for name in ("rewards", "mask"))
        found = (from_the_end if rule.endswith("gamma1") else from_the_group)(rewards, mask)
    tolerance = 1e-8 if dtype == "float64" else 1e-6
    expected = ARRAYS[file][f"{case}/advantages_expected/{rule}"]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_returns_discount_valid_tokens() -> None:
    """A hole in the mask neither earns nor discounts, and what stands in it or in the padding is lost."""
    rewards = jnp.array([[1.0, jnp.nan, 2.0, 4.0, jnp.nan], [0.0, 0.0, 8.0, jnp.inf, 1.0]])
    mask = jnp.array([[1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
    found = returns_to_go(rewards, mask, gamma=0.5)
    assert found.tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 0, 2 + 0.5 * 4, 4, 0], [2, 4, 8, 0, 0]]


def test_returns_against_a_matrix(parity_seed: int) -> None:
    rng = np.random.default_rng(parity_seed)
    rewards, gamma = rng.normal(size=(3, 8)), 0.9
    ages = np.arange(8)[None, :] - np.arange(8)[:, None]
    discounts = np.where(ages >= 0, gamma ** np.maximum(ages, 0), 0)
    with jax.enable_x64(True):
        found = returns_to_go(jnp.asarray(rewards), jnp.ones((3, 8)), gamma)
    np.testing.assert_allclose(found, rewards @ discounts.T, rtol=1e-12)


def test_the_reward_stands_on_the_last_token() -> None:
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = reward_at_end(jnp.array([2.0, 3.0, 5.0]), mask)
    assert found.tolist() == [[0, 2, 0], [0, 0, 3], [0, 0, 0]]


@pytest.mark.parametrize("case", ["ragged", "empty_row"])
def test_kl_in_the_reward(case: str) -> None:
    """Row by row the sum is RLOO's reward: the task's less beta x the summed log-ratio; no gradient flows."""
    names = ("logps", "ref_logps", "mask")
    logps, ref, mask = (ARRAYS["kept"][f"{case}/{name}"].astype(np.float64) for name in names)
    rewards = np.arange(len(mask), dtype=np.float64)
    dirty = np.where(mask > 0, logps, np.nan)
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in (rewards, dirty, ref, mask)]
        found = np.asarray(kl_in_reward(*given, beta=0.05))
        gradient = jax.grad(lambda x: kl_in_reward(given[0], x, *given[2:], beta=0.05).sum())(jnp.asarray(logps))
    for n, length in enumerate(mask.sum(1).astype(int)):
        expected = -0.05 * (logps - ref)[n, :length]
        if length:
            expected[-1] += rewards[n]
        np.testing.assert_allclose(found[n, :length], expected, rtol=1e-12)
        assert np.all(found[n, length:] == 0)
    assert np.all(np.asarray(gradient) == 0)


def test_reinforce_pp_with_kl_against_numpy() -> None:
    names = ("logps", "ref_logps", "mask")
    logps, ref, mask = (ARRAYS["kept"][f"ragged/{name}"].astype(np.float64) for name in names)
    rewards = np.random.default_rng(1).normal(size=len(mask))
    returns = np.zeros_like(mask)
    for n, length in enumerate(mask.sum(1).astype(int)):
        later = 0.0
        for t in reversed(range(length)):
            later = (rewards[n] if t == length - 1 else 0.0) - 0.1 * (logps[n, t] - ref[n, t]) + 0.99 * later
            returns[n, t] = later
    valid = returns[mask > 0]
    expected = np.where(mask > 0, (returns - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8), 0)
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in (rewards, logps, ref, mask)]
        found = reinforce_pp(kl_in_reward(*given, beta=0.1), given[-1], gamma=0.99)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a mask of 4 rows, found 3"):
        reinforce_pp_baseline(jnp.zeros((2, 2)), jnp.ones((3, 5)))
