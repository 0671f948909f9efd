"""The configs of which a plan is made: a run's own, or those of the stages of a pipeline."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from model.config import unknown
from train.initial import make_tokenizer
from train.pipeline import stage_config
from train.setup import make_task


def stages_of(config: ConfigDict, stage: str = "") -> list[ConfigDict]:
    """The config itself, or of a pipeline those of all stages in order, or of the one that is named.

    Raises ValueError for a stage that there is not, and for one that begins with what no plan knows.
    """
    if not config.stages:
        if stage:
            raise ValueError(f"--stage={stage}: {config.name!r} has no stages; leave the flag out")
        return [config]
    if stage and stage not in config.stages:
        raise ValueError(unknown("stage", stage, config.stages))
    return [_one(config, name) for name in ([stage] if stage else config.stages)]


def _one(config: ConfigDict, name: str) -> ConfigDict:
    """A stage by itself: the folder it starts from need not be there, and its vocabulary is that of the first."""
    found, before = stage_config(config, name, None), config.stages[: list(config.stages).index(name)]
    thinks = next((other for other in before if stage_config(config, other, None).algorithm == "coconut"), "")
    if thinks:
        raise ValueError(
            f"stage {name!r} starts from the model of stage {thinks!r} (algorithm coconut), which has learnt thoughts,"
            f" and there are no plans with thoughts; plan another of {tuple(config.stages)} with --stage"
        )
    if before and found.model.d_model and not found.model.vocab_size and not found.init_from:
        first = stage_config(config, config.stages[0], None)
        found.model.vocab_size = first.model.vocab_size or make_tokenizer(first, make_task(first), Path()).vocab_size
    return found
