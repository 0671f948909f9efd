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


def build_algorithm(setup: Setup) -> Algorithm:
    """Builds `config.algorithm`; an unknown name raises and lists the table."""
    name = setup.config.algorithm
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, (*ALGORITHMS, *JOBS)))
    return ALGORITHMS[name](setup)


def check_without_data(setup: Setup) -> None:
    """Raises what is wrong with a stage whose files are yet to be written, as far as that can be seen without them."""
    name = setup.config.algorithm
    if name in JOBS:
        JOBS[name].check(setup)
    elif name in UPDATES:
        UPDATES[name](setup)
    elif name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, (*ALGORITHMS, *JOBS)))


def job_of(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs a stage that trains nothing."""
    return run_job(config, workdir, say, JOBS[config.algorithm])
