"""Rules that cannot be meant are refused when a run is built, with their numbers."""

from typing import Any

import pytest

from settings.rl import RLConfig


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"samples": 1, "singleton": "raw"},
        {"samples": 1, "singleton": "zero", "baseline": "leave_one_out", "scale": "none"},
        {"samples": 1, "baseline": "batch", "scale": "batch"},
        {"beta": 0.04, "sync_every": 400},
        {"clip_low": 10.0, "clip_high": 10.0},
        {"clip_low": 0.0, "clip_high": 0.0},
        {"clip_low": 1.0, "clip_high": float("inf")},
        {"aggregate": "constant", "max_new_tokens": 3000},
        {"estimator": "reinforce_pp", "gamma": 0.9, "kl_in": "reward", "beta": 0.01},
        {"importance_low": 0.5, "importance_high": 5.0, "importance_level": "sequence"},
    ],
)
def test_rules_that_are_fine(arguments: dict[str, Any]) -> None:
    RLConfig(**{"samples": 8} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, found 0.0: greedy samples"),
        ({"depth": "drwan"}, "Did you mean 'drawn'"),
        ({"prompts": 3, "samples": 4, "minibatches": 5}, "3 prompts x 4 samples"),
        ({"refill": -1}, "refill must be at least 0, found -1"),
        ({"prompts": 4, "carry": 5}, "from 0 to rl.prompts=4; found 5"),
        ({"carry": 4, "refill": 1}, "does not go with rl.refill"),
        ({"carry": 4, "slots": 8}, "at least a quarter of 288 samples"),
        ({"policy_coef": 0.0}, "leaves nothing to learn from"),
        ({"entropy_target": 0.2, "entropy_coef": 0.1}, "by itself: leave rl.entropy_coef=0.1 out"),
        ({"samples": 1}, "samples = 1 with baseline='group', scale='group'"),
        ({"samples": 1, "baseline": "leave_one_out", "scale": "none"}, "baseline='leave_one_out'"),
        ({"samples": 1, "baseline": "none", "scale": "mean"}, "scale='mean'"),
        ({"samples": 0}, "samples must be at least 1, found 0"),
        ({"ddof": 2}, r"ddof must lie in \[0, 1\], found 2"),
        ({"beta": -0.1}, "beta must be at least 0, found -0.1"),
        ({"sync_every": 400}, "sync_every = 400 renews a reference, but there is none"),
        ({"sync_every": 400, "beta": 0.04, "sync_alpha": 2.0}, r"sync_alpha must lie in \(0, 1\], found 2.0"),
        ({"clip_low": -0.2}, "clip_low must be at least 0, found -0.2"),
        ({"clip_low": 0.2, "ratio_cap": 0.7}, "ratio_cap = 0.7"),
        ({"entropy_share": 0.0}, r"entropy_share must lie in \(0, 1\], found 0.0"),
        ({"policy_coef": -1.0}, "policy_coef must be at least 0, found -1.0"),
        ({"off_policy_threshold": -1.0}, "off_policy_threshold must be at least 0, found -1.0"),
        ({"gamma": 0.0, "estimator": "reinforce_pp"}, "gamma must lie"),
        ({"gamma": 0.9}, "gamma = 0.9 discounts returns, which estimator='group' has not"),
        ({"kl_in": "reward"}, "kl_in='reward' takes beta x KL off the reward, but beta = 0"),
        ({"kl_in": "reward", "beta": 0.1, "unbiased_kl": True}, "corrects a KL in the loss"),
        ({"importance_cap": 0.0}, "importance_cap must be positive, found 0.0"),
        ({"importance_low": 3.0, "importance_high": 2.0}, "must be an interval"),
        ({"importance_low": 0.5}, "give importance_high, too"),
        ({"estimator": "reinforce"}, "Did you mean 'reinforce_pp'"),
        ({"kl_in": "rewards"}, "Did you mean 'reward'"),
        ({"baseline": "grup"}, "Did you mean 'group'"),
        ({"scale": "whitten"}, "Did you mean 'whiten'"),
        ({"singleton": "raww"}, "Did you mean 'raw'"),
        ({"kl_kind": "k4"}, "unknown rl.kl_kind 'k4'"),
        ({"surrogate": "gmp"}, "Did you mean 'gmpo'"),
        ({"aggregate": "sequence_sums"}, "Did you mean 'sequence_sum'"),
    ],
)
def test_rules_that_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RLConfig(**{"samples": 8} | arguments)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"samples = 1(.|\n)*sync_every = 4"):
        RLConfig(samples=1, sync_every=4)
    with pytest.raises(ValueError, match=r"rl.prompts must be at least 1(.|\n)*unknown rl.scale"):
        RLConfig(scale="x", prompts=0)
