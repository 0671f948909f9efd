"""Rules that cannot be meant are refused when a run is built, with their numbers."""

from typing import Any

import pytest

from rl.rules import check_rules


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"samples": 1, "singleton": "raw"},
        {"samples": 1, "singleton": "zero", "baseline": "leave_one_out", "scale": "none"},
        {"samples": 1, "baseline": "batch", "scale": "batch"},
        {"beta": 0.04, "has_reference": True, "sync_every": 400},
        {"clip_low": 10.0, "clip_high": 10.0},
        {"clip_low": 0.0, "clip_high": 0.0},
        {"clip_low": 1.0, "clip_high": float("inf")},
        {"aggregate": "constant", "max_length": 3000},
        {"estimator": "reinforce_pp", "gamma": 0.9, "kl_in": "reward", "beta": 0.01, "has_reference": True},
        {"importance_low": 0.5, "importance_high": 5.0, "importance_level": "sequence"},
    ],
)
def test_rules_that_are_fine(arguments: dict[str, Any]) -> None:
    check_rules(**{"samples": 8} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 1}, "samples = 1 with baseline='group', scale='group'"),
        ({"samples": 1, "baseline": "leave_one_out", "scale": "none"}, "baseline='leave_one_out'"),
        ({"samples": 1, "baseline": "none", "scale": "mean"}, "scale='mean'"),
        ({"samples": 0}, "samples = 0"),
        ({"ddof": 2}, "ddof = 2"),
        ({"beta": 0.04}, "beta = 0.04 .* no reference parameters"),
        ({"beta": -0.1, "has_reference": True}, "beta = -0.1 must be >= 0"),
        ({"sync_every": 400}, "sync_every = 400 .* no reference"),
        ({"sync_every": 400, "has_reference": True, "sync_alpha": 2.0}, "alpha = 2.0"),
        ({"clip_low": -0.2}, "clip_low = -0.2"),
        ({"clip_low": 0.2, "ratio_cap": 0.7}, "ratio_cap = 0.7"),
        ({"aggregate": "constant"}, "max_length = None"),
        ({"entropy_share": 0.0}, "entropy_share = 0.0"),
        ({"policy_coef": -1.0}, "policy_coef = -1.0"),
        ({"off_policy_threshold": -1.0}, "off_policy_threshold = -1.0"),
        ({"gamma": 0.0, "estimator": "reinforce_pp"}, "gamma = 0.0 must lie"),
        ({"gamma": 0.9}, "gamma = 0.9 discounts returns, which estimator='group' has not"),
        ({"kl_in": "reward"}, "kl_in='reward' takes beta x KL off the reward, but beta = 0"),
        ({"kl_in": "reward", "beta": 0.1, "has_reference": True, "unbiased_kl": True}, "corrects a KL in the loss"),
        ({"importance_cap": 0.0}, "importance_cap = 0.0"),
        ({"importance_low": 3.0, "importance_high": 2.0}, "must be an interval"),
        ({"importance_low": 0.5}, "give importance_high, too"),
        ({"estimator": "reinforce"}, "Did you mean 'reinforce_pp'"),
        ({"kl_in": "rewards"}, "Did you mean 'reward'"),
        ({"baseline": "grup"}, "Did you mean 'group'"),
        ({"scale": "whitten"}, "Did you mean 'whiten'"),
        ({"singleton": "raww"}, "Did you mean 'raw'"),
        ({"kl_kind": "k4"}, "unknown kl_kind 'k4'"),
        ({"surrogate": "gmp"}, "Did you mean 'gmpo'"),
        ({"aggregate": "sequence_sums"}, "Did you mean 'sequence_sum'"),
    ],
)
def test_rules_that_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rules(**{"samples": 8} | arguments)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"samples = 1(.|\n)*beta = 0.1"):
        check_rules(samples=1, beta=0.1)
