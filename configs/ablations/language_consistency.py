"""What keeps a thought in one language, and what a cold start saves: R1-Zero and R1 in miniature, from one base.

    pretrained -> zero, zero_one (with language consistency)
    pretrained -> cold -> r1, r1_one (with language consistency)

Command:   python -m launch.sweep --config=configs/ablations/language_consistency.py --workdir=runs/language_consistency
           python -m analysis.studies.roads "runs/language_consistency/*"
Hardware:  two CPU cores, four minutes a seed
Expect:    docs/results.md, "R1 in miniature"
Paper:     2501.12948, section 2.3.2: without the reward thoughts mix languages; with it they do not, at a small cost in
           accuracy. Section 2.3.1: a cold start gives readable thoughts from the first step on
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import SEEDS
from configs.pipelines.shared import CLEAN, FORM, IN_DIGITS, pretrained, rollouts, small, stage

RULES: dict[str, Any] = {"accuracy": 1.0, "format": FORM, "script": {"weight": 0.0, **IN_DIGITS}}
ONE_LANGUAGE: dict[str, Any] = RULES | {"script": {"weight": 0.5, **IN_DIGITS}}


def get_config() -> ConfigDict:
    """The base and its four branches; the consistency is measured in all of them."""
    config = small("language_consistency")
    config.stages = ("pretrained", "zero", "zero_one", "cold", "r1", "r1_one")
    config.stage.pretrained = pretrained()
    cold = dict(options=dict(CLEAN, train_size=200))
    config.stage.cold = stage(start="pretrained", algorithm="sft", steps=15, data=cold, optimizer=dict(lr=1e-3))
    for name, start, rewards in (
        ("zero", "pretrained", RULES),
        ("zero_one", "pretrained", ONE_LANGUAGE),
        ("r1", "cold", RULES),
        ("r1_one", "cold", ONE_LANGUAGE),
    ):
        config.stage[name] = rollouts(100, rewards, init_from=start)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
