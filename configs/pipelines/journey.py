"""Journey learning (2410.18982): thoughts that walk a search tree with wrong turns, against the shortcuts of the same
trees; then a preference for right journeys.

    shortcut;  journey -> samples -> pairs -> preferred

The trees are those of Countdown with three numbers (data/tasks/journeys.py): at most two steps at every node lead
nowhere.

Command:   python -m train --config=configs/pipelines/journey.py --workdir=runs/journey
           python -m launch.sweep --config=configs/pipelines/journey.py --workdir=runs/journey_seeds
           python -m train --config=configs/pipelines/journey.py:hub --workdir=runs/journey_hub \
               --config.init_from=/models/deepseek-math-7b-base --config.data.path=/data/math  (not measured)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      four minutes
Expect:    docs/results.md, "Recipes"
Paper:     327 long thoughts, three epochs after one of shortcuts: +8 points on MATH500 over the shortcuts of the same
           trees (from a secondary source); DPO with 20 samples a question, 5 right x 5 wrong
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import SEEDS
from configs.pipelines.shared import hub, small, stage

OPINIONS = dict(algorithm="sample", sample=dict(least={}, n=20, examples=256))
PAIRS = dict(algorithm="pairs", data=dict(split="samples/kept.jsonl"), pairs=dict(most=5))


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published numbers on a model in the Hub's layout."""
    if common.parse_arg(arg, hub=False).hub:
        config = hub("journey", 8192)
        config.stages = ("shortcut", "journey", "samples", "pairs", "preferred")
        config.stage.shortcut = stage(algorithm="sft", steps=3900, data=dict(split="shortcuts"))
        config.stage.journey = stage(algorithm="sft", steps=31, data=dict(split="journeys"))
        config.stage.samples, config.stage.pairs = ConfigDict(OPINIONS), ConfigDict(PAIRS)
        learnt = dict(split="pairs/pairs.jsonl", batch_size=32)
        config.stage.preferred = stage(algorithm="preference", steps=100, data=learnt, optimizer=dict(lr=5e-7))
        return config
    config = small("journey")
    config.data.update(task="journeys", length=112)
    config.data.options = ConfigDict(dict(wrong_turns=2))
    config.model.max_length = 128
    config.eval.max_new_tokens = config.sample.max_new_tokens = 104
    config.stages = ("shortcut", "journey", "samples", "pairs", "preferred")
    config.stage.shortcut = stage(algorithm="sft", steps=600, data=dict(options=dict(wrong_turns=0)))
    config.stage.journey = stage(start="", algorithm="sft", steps=600)
    config.stage.samples, config.stage.pairs = ConfigDict(OPINIONS), ConfigDict(PAIRS)
    config.stage.preferred = stage(
        start="journey",
        algorithm="preference",
        steps=60,
        data=dict(split="pairs/pairs.jsonl", batch_size=32),
        preference=dict(prompt_length=16),
        optimizer=dict(lr=1e-4),
    )
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
