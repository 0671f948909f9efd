"""The configs of which a plan is made: a run's own, or those of the stages of a pipeline."""

from __future__ import annotations

import copy
from pathlib import Path

from ml_collections import ConfigDict

from model.config import unknown
from settings.stages import JOBS
from train.graph import Stage, graph_of, stage_config
from train.initial import make_tokenizer
from train.setup import make_task


def stages_of(config: ConfigDict, stage: str = "") -> list[ConfigDict]:
    """The config itself, or of a pipeline those of all stages that train, in order, or of the one that is named.

    Raises ValueError for a stage that there is not, for one that trains nothing, and for one that begins with what no
    plan knows.
    """
    if not config.stages:
        if stage:
            raise ValueError(f"--stage={stage}: {config.name!r} has no stages; leave the flag out")
        return [config]
    if stage and stage not in config.stages:
        raise ValueError(unknown("stage", stage, config.stages))
    found = graph_of(config)
    if stage and next(one for one in found if one.name == stage).config.algorithm in JOBS:
        raise ValueError(f"--stage={stage} trains nothing, and there is no update to plan")
    return [_one(config, one) for one in found if one.config.algorithm not in JOBS and stage in ("", one.name)]


def _one(config: ConfigDict, stage: Stage) -> ConfigDict:
    """A stage by itself: the folder it starts from need not be there, and its vocabulary is that of the first."""
    found, start = copy.deepcopy(stage.config), stage.edges.get("init_from", "")
    before = stage_config(config, start) if start else None
    if before is not None and before.algorithm == "coconut":
        raise ValueError(
            f"stage {stage.name!r} starts from the model of stage {start!r} (algorithm coconut), which has learnt"
            f" thoughts, and there are no plans with thoughts; plan another of {tuple(config.stages)} with --stage"
        )
    with found.unlocked():
        if start:
            found.init_from = config.init_from
        if start and found.model.d_model and not found.model.vocab_size and not found.init_from:
            first = stage_config(config, config.stages[0])
            first.init_from = ""
            size = first.model.vocab_size or make_tokenizer(first, make_task(first), Path()).vocab_size
            found.model.vocab_size = size
    return found
