"""Advantages: the golden rules of other libraries, edge cases and wrong arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.advantages import BASELINES, SCALES, advantages
from tests.rl.golden import ARRAYS, cases

RULES: dict[str, dict[str, Any]] = {
    "group_mean_std_eps1e-6": {},
    "group_mean_std_eps1e-4": {"epsilon": 1e-4, "singleton": "zero"},
    "group_mean": {"scale": "none"},
    "group_mean_trl": {"scale": "none", "singleton": "zero"},
    "group_mean_batch_std_eps1e-4": {"scale": "batch", "epsilon": 1e-4, "singleton": "zero"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
    "reinforce_pp_baseline": {"scale": "whiten"},
}
compiled = jax.jit(advantages, static_argnames=("baseline", "scale", "ddof", "epsilon", "singleton"))
BY_GROUP = [case for case in cases("advantages_expected") if case[2] in RULES]


def expected(file: str, case: str, rule: str) -> np.ndarray:
    return ARRAYS[file][f"{case}/advantages_expected/{rule}"]


def rewards_of(file: str, case: str) -> np.ndarray:
    return ARRAYS[file][f"{case}/rewards"]


@pytest.mark.parametrize(("file", "case", "rule"), BY_GROUP)
def test_golden(file: str, case: str, rule: str) -> None:
    with jax.enable_x64(True):
        found = compiled(jnp.asarray(rewards_of(file, case)), **RULES[rule])
    np.testing.assert_allclose(found, expected(file, case, rule), rtol=0, atol=1e-8)
    single = compiled(jnp.asarray(rewards_of(file, case), jnp.float32), **RULES[rule])
    # Equal rewards give rounding / epsilon, which float32 magnifies: hence the absolute tolerance.
    np.testing.assert_allclose(single, expected(file, case, rule), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flipped", [{"ddof": 0}, {"epsilon": 1e-4}, {"baseline": "batch"}, {"scale": "batch"}])
def test_a_flipped_argument_is_noticed(flipped: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        found = advantages(jnp.asarray(rewards_of("kept", "ragged")), **flipped)
    assert np.abs(np.asarray(found) - expected("kept", "ragged", "group_mean_std_eps1e-6")).max() > 1e-5


def test_numpy_rewards_are_taken() -> None:
    rewards = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(advantages(rewards), advantages(jnp.asarray(rewards)))


def test_equal_rewards_carry_no_signal() -> None:
    assert np.all(advantages(jnp.ones((3, 8))) == 0)


def test_singletons_are_explicit() -> None:
    rewards = jnp.array([[1.0], [0.0]])
    np.testing.assert_allclose(advantages(rewards), rewards, rtol=1e-5)
    for baseline in ("group", "leave_one_out"):
        assert np.all(advantages(rewards, baseline=baseline, singleton="zero") == 0)


def test_one_reward_in_all_is_finite() -> None:
    for scale in ("group", "batch", "whiten", "none"):
        assert np.isfinite(advantages(jnp.ones((1, 1)), scale=scale)).all()


def test_leave_one_out_is_the_mean_of_the_others(parity_seed: int) -> None:
    rewards = np.random.default_rng(parity_seed).normal(size=(4, 6)).astype(np.float32)
    found = advantages(jnp.asarray(rewards), baseline="leave_one_out", scale="none")
    for j in range(6):
        np.testing.assert_allclose(found[:, j], rewards[:, j] - np.delete(rewards, j, 1).mean(1), atol=1e-5)


def test_maxrl_divides_by_the_mean(parity_seed: int) -> None:
    rewards = np.random.default_rng(parity_seed).binomial(1, 0.4, size=(5, 8)).astype(np.float64)
    rewards[0] = 0
    mean = rewards.mean(1, keepdims=True)
    with jax.enable_x64(True):
        found = advantages(jnp.asarray(rewards), scale="mean")
    np.testing.assert_allclose(found, (rewards - mean) / (mean + 1e-6), rtol=1e-12)
    assert np.all(np.asarray(found)[0] == 0), "a prompt that nobody solved says nothing"
    lone = jnp.array([[1.0], [0.0]])
    np.testing.assert_allclose(advantages(lone, scale="mean"), lone, rtol=1e-5)
    assert np.all(advantages(lone, baseline="none", scale="mean", singleton="zero") == 0)


def test_no_baseline_and_no_scale_is_the_reward() -> None:
    rewards = jnp.arange(6.0).reshape(2, 3)
    assert np.all(advantages(rewards, baseline="none", scale="none") == rewards)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "grop"}, "Did you mean 'group'"),
        ({"scale": "bach"}, "Did you mean 'batch'"),
        ({"singleton": "zeros"}, "Did you mean 'zero'"),
    ],
)
def test_wrong_names(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advantages(jnp.ones((2, 2)), **arguments)


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"\[prompts, completions\]"):
        advantages(jnp.ones(4))


RAGGED = np.array([2, 0, 2, 1, 0, 2, 0, 0])  # groups of four, one and three, in any order
EARNED = jnp.array([1.0, 0.0, 0.5, 0.3, 1.0, 0.0, 1.0, 0.25])


def by_hand(baseline: str, scale: str, ddof: int, epsilon: float) -> np.ndarray:
    """Group by group, in float64."""
    rewards, found = np.asarray(EARNED, np.float64), np.zeros(len(RAGGED))
    for group in range(3):
        here = group == RAGGED
        own, lone = rewards[here], here.sum() == 1
        base = {
            "group": own.mean(),
            "leave_one_out": (own.sum() - own) / max(len(own) - 1, 1),
            "batch": rewards.mean(),
            "none": 0.0,
        }[baseline]
        centred = own - (0.0 if lone and baseline in ("group", "leave_one_out") else base)
        spread = {
            "group": 1.0 if lone else own.std(ddof=ddof),
            "mean": 1.0 if lone else own.mean(),
            "batch": rewards.std(ddof=ddof),
        }
        found[here] = centred / (spread[scale] + epsilon) if scale in spread else centred
    if scale == "whiten":
        return (found - found.mean()) / np.sqrt(found.var(ddof=ddof) + 1e-8)
    return found


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_groups_of_different_sizes(baseline: str, scale: str, ddof: int) -> None:
    found = advantages(EARNED, RAGGED, baseline=baseline, scale=scale, ddof=ddof, epsilon=1e-3)
    np.testing.assert_allclose(found, by_hand(baseline, scale, ddof, 1e-3), rtol=1e-5, atol=1e-6)
    zero = advantages(EARNED, RAGGED, baseline=baseline, scale=scale, ddof=ddof, epsilon=1e-3, singleton="zero")
    compares = baseline in ("group", "leave_one_out") or scale in ("group", "mean")
    lone = RAGGED == 1
    np.testing.assert_array_equal(zero[~lone], found[~lone])
    np.testing.assert_array_equal(zero[lone], 0 if compares else found[lone])


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_equal_groups_by_index_are_those_of_a_table(baseline: str, scale: str) -> None:
    """Bit for bit, in any order of the rows."""
    rewards = jnp.asarray(np.random.default_rng(0).random((5, 6)), jnp.float32)
    table = np.asarray(advantages(rewards, baseline=baseline, scale=scale)).reshape(-1)
    order = np.random.default_rng(1).permutation(30)
    for rows in (np.arange(30), order):
        found = advantages(rewards.reshape(-1)[rows], (np.arange(30) // 6)[rows], baseline=baseline, scale=scale)
        if rows is order:
            np.testing.assert_allclose(found, table[rows], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found, table)


def test_equal_rewards_of_uneven_groups_carry_no_signal() -> None:
    assert np.all(np.asarray(advantages(jnp.full(8, 0.7), RAGGED, singleton="zero")) == 0)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group_of \(2,\) must say which group each of rewards \(3,\)"):
        advantages(jnp.ones(3), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"\[N\] with group_of \[N\]"):
        advantages(jnp.ones(3))
