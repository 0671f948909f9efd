"""Which groups of a rollout teach anything."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from rl.experience import informative


def test_groups_of_equal_rewards_teach_nothing() -> None:
    rewards = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [-1.0, -0.5]])
    assert informative(SimpleNamespace(rewards=rewards)).tolist() == [False, True, False, True]  # type: ignore[arg-type]
