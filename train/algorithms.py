"""The composition root: from an algorithm's name to the builder of its objective and source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import rl.grpo
import rl.jobs.pairs
import rl.jobs.sample
import rl.jobs.score
from model.config import unknown
from train.jobs import export, merge
from train.jobs.base import Job, run_job
from train.objectives import distill, preference, pretrain, process_reward, reward, sft, thoughts
from train.setup import SUPERVISED, Algorithm, Setup, Update

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
# Stages that train nothing.
JOBS: dict[str, Job] = {
    "sample": rl.jobs.sample.JOB,
    "score": rl.jobs.score.JOB,
    "pairs": rl.jobs.pairs.JOB,
    "merge": merge.JOB,
    "export": export.JOB,
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


# Those whose rows bring the depth of their examples, which recurrent.draw="task" asks for.
BY_EXAMPLE = ("sft", "grpo")


def build_algorithm(setup: Setup) -> Algorithm:
    """Builds `config.algorithm`; an unknown name raises and lists the table."""
    check_algorithm(setup)
    return ALGORITHMS[setup.config.algorithm](setup)


def update_of(setup: Setup) -> Update:
    """What an update of `config.algorithm` is, from the config alone; ValueError where that does not tell it."""
    name = setup.config.algorithm
    if name not in UPDATES:
        raise ValueError(unknown("algorithm with a plan", name, UPDATES))
    check_algorithm(setup)
    return UPDATES[name](setup)


def check_without_data(setup: Setup) -> None:
    """Raises what is wrong with a stage whose files are yet to be written, as far as that can be seen without them."""
    name = setup.config.algorithm
    if name in JOBS:
        JOBS[name].check(setup)
        return
    check_algorithm(setup)
    if name in UPDATES:
        UPDATES[name](setup)


def check_algorithm(setup: Setup) -> None:
    """Raises ValueError for an unknown algorithm, and for one whose rows do not have the depth that is asked for."""
    name = setup.config.algorithm
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, (*ALGORITHMS, *JOBS)))
    if setup.depth_by_example and name not in BY_EXAMPLE:
        raise ValueError(
            f'model.recurrent.draw="task" is for algorithm={" or ".join(BY_EXAMPLE)}: the rows of algorithm={name} have'
            ' no depth of their own. Set another draw ("fixed", the default, leaves that of init_from as it is)'
        )
    if setup.depth_ramp and name not in SUPERVISED:
        raise ValueError(
            f"model.recurrent.ramp={setup.model.config.recurrent.ramp} is for algorithm={' or '.join(SUPERVISED)}:"
            f" set it to 0 for algorithm={name}"
        )


def job_of(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs a stage that trains nothing."""
    return run_job(config, workdir, say, JOBS[config.algorithm])
