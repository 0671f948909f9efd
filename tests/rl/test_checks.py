"""Every sentence of the diagnosis: when it is said, with which number, and when it is not."""

from typing import Any

import pytest

from rl.checks import CHECKS, FIRST, LATEST, Bounds, complaints, diagnose, remember

HEALTHY: dict[str, float] = {
    "completions/clipped_ratio": 0.2,
    "completions/eos_rate": 0.8,
    "completions/unique_ratio": 0.9,
    "completions/mean_length": 100.0,
    "frac_reward_zero_std": 0.5,
    "groups/all_right": 0.2,
    "reward": 0.3,
    "entropy": 1.0,
    "kl": 0.02,
    "clip_ratio/region_mean": 0.01,
    "sampling/sampling_logp_difference/max": 1e-4,
    "rewards/accuracy/std": 0.4,
    "rewards/format/std": 0.2,
    "verify/timeouts": 0.0,
    "skipped": 0.0,
}
START = [HEALTHY] * FIRST
# check -> (what changes, in how many of the last records, numbers and advice that its sentence holds)
CASES: dict[str, tuple[dict[str, float], int, tuple[str, ...]]] = {
    "cut": ({"completions/clipped_ratio": 1.0}, 1, ("every completion was cut", "max_new_tokens")),
    "endless": ({"completions/eos_rate": 0.0}, 1, ("no end token",)),
    "constant": ({"frac_reward_zero_std": 1.0}, 3, ("every advantage is zero",)),
    "unrewarded": ({"reward": 0.0}, 3, ("no completion was rewarded", "samples.jsonl")),
    "saturated": ({"groups/all_right": 0.95, "reward": 0.97}, 3, ("95% of the groups", "reward 0.97", "harder")),
    "entropy_collapse": ({"entropy": 0.04}, LATEST, ("from 1 to 0.04 nats", "clip_high", "entropy_coef")),
    "entropy_rise": ({"entropy": 3.2}, LATEST, ("from 1 to 3.2 nats", "learning rate")),
    "kl_blow_up": ({"kl": 2.5}, 3, ("KL to the reference is 2.5", "above 1", "rl.beta")),
    "sampler_gap": ({"sampling/sampling_logp_difference/max": 0.75}, 1, ("0.75 nats", "above 0.5", "temperature")),
    "clipped": ({"clip_ratio/region_mean": 0.4}, 3, ("40% of the tokens", "updates per rollout")),
    "dominance": ({"rewards/format/std": 4.8}, 3, ("'format' makes 92%", "deviation 4.8", "weights")),
    "timeouts": ({"verify/timeouts": 3.0}, 1, ("on 3 answers", "time limit")),
    "alike": ({"completions/unique_ratio": 0.125}, 3, ("12% of a prompt's completions", "temperature")),
    "shrunk": ({"completions/mean_length": 9.0}, LATEST, ("from 100 to 9 tokens", "samples.jsonl")),
    "skipped": ({"skipped": 2.0}, 1, ("2 updates", "not finite", "learning rate")),
}


def test_with_a_teacher_rewards_need_not_differ() -> None:
    record = {**HEALTHY, "frac_reward_zero_std": 1.0, "reward": 0.0, "teacher/kl": 0.5}
    assert not {"constant", "unrewarded"} & diagnose([record] * 3).keys()


def test_every_check_has_a_case() -> None:
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_with_its_number(name: str) -> None:
    changes, records, words = CASES[name]
    history: list[Any] = [*START, *[HEALTHY | changes] * records]
    assert set(diagnose(history)) == {name}
    assert all(word in diagnose(history)[name] for word in words), diagnose(history)[name]


@pytest.mark.parametrize("name", CASES)
def test_it_is_not_said_too_early(name: str) -> None:
    changes, records, _ = CASES[name]
    assert not diagnose([*START, HEALTHY, *[HEALTHY | changes] * (records - 1)])


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_once(name: str) -> None:
    changes, records, _ = CASES[name]
    history: list[Any] = []
    said: set[str] = set()
    sentences = []
    for record in [*[HEALTHY] * FIRST, *[HEALTHY | changes] * 30]:
        history = remember(history, record)
        found = diagnose(history, said)
        sentences += found.values()
        said |= found.keys()
    assert len(sentences) == 1 and said == {name}
    assert complaints([*START, *[HEALTHY | changes] * records]) == sentences
    assert not complaints([*START, *[HEALTHY | changes] * (records + 1)])


@pytest.mark.parametrize("name", CASES)
def test_a_missing_metric_is_silent(name: str) -> None:
    changes, records, _ = CASES[name]
    missing = {key: value for key, value in HEALTHY.items() if key not in changes}
    assert not diagnose([missing] * 20)
    unknown = dict.fromkeys(changes, float("nan"))
    assert not diagnose([*START, *[HEALTHY | unknown] * records])


def test_a_healthy_run_is_silent() -> None:
    assert not diagnose([HEALTHY] * 50) and not diagnose([]) and not diagnose([{}]) and not complaints([])


def test_a_run_that_began_without_entropy_is_no_collapse() -> None:
    assert not diagnose([HEALTHY | {"entropy": 0.0}] * 30)


def test_one_reward_alone_cannot_dominate() -> None:
    alone = {key: value for key, value in HEALTHY.items() if key != "rewards/format/std"}
    assert not diagnose([alone] * 5)
    silent = HEALTHY | {"rewards/format/std": 0.0, "rewards/accuracy/std": 0.0}
    assert not diagnose([silent] * 5)


def test_bounds_can_be_moved() -> None:
    record = HEALTHY | {"sampling/sampling_logp_difference/max": 0.01}
    assert set(diagnose([record], bounds=Bounds(gap=1e-3))) == {"sampler_gap"}


def test_what_is_remembered_is_bounded_and_enough() -> None:
    whole = [HEALTHY | {"entropy": 1.0 if n < FIRST else 0.99**n} for n in range(400)]
    thinned: list[Any] = []
    for record in whole:
        thinned = remember(thinned, record)
    assert len(thinned) == FIRST + 2 * LATEST
    assert diagnose(thinned) == diagnose(whole) and "entropy_collapse" in diagnose(whole)


def test_a_model_that_is_right_may_be_sure() -> None:
    falling = [{"entropy": 2.0, "score": 0.1}] * 5 + [{"entropy": 0.01, "score": 0.9}] * 5
    assert "entropy_collapse" not in diagnose(falling)
    assert "entropy_collapse" in diagnose([record | {"score": 0.3} for record in falling])
