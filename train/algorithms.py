"""The composition root: from an algorithm's name to the builder of its objective and source."""

from __future__ import annotations

from collections.abc import Callable

import rl.grpo
from model.config import unknown
from train.objectives import sft, thoughts
from train.setup import Algorithm, Setup

ALGORITHMS: dict[str, Callable[[Setup], Algorithm]] = {
    "sft": sft.build,
    "grpo": rl.grpo.build,
    "coconut": thoughts.build,
}


def build_algorithm(setup: Setup) -> Algorithm:
    """Builds `config.algorithm`; an unknown name raises and lists the table."""
    name = setup.config.algorithm
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name](setup)
