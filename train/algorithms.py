"""The composition root: from an algorithm's name to the builder of its objective and source."""

from __future__ import annotations

from collections.abc import Callable

import rl.grpo
from model.config import unknown
from train.objectives import distill, preference, pretrain, process_reward, reward, sft, thoughts
from train.setup import Algorithm, Setup, Update

ALGORITHMS: dict[str, Callable[[Setup], Algorithm]] = {
    "pretrain": pretrain.build,
    "sft": sft.build,
    "grpo": rl.grpo.build,
    "coconut": thoughts.build,
    "preference": preference.build,
    "reward": reward.build,
    "distill": distill.build,
    "process_reward": process_reward.build,
}
# What an update is, from the config alone; the updates of Coconut depend on the lengths of the data.
UPDATES: dict[str, Callable[[Setup], Update]] = {
    "pretrain": sft.update,
    "sft": sft.update,
    "grpo": rl.grpo.update,
    "preference": preference.update,
    "reward": reward.update,
    "distill": distill.update,
    "process_reward": process_reward.update,
}


def build_algorithm(setup: Setup) -> Algorithm:
    """Builds `config.algorithm`; an unknown name raises and lists the table."""
    name = setup.config.algorithm
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name](setup)
