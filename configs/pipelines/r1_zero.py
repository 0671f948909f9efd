"""DeepSeek-R1-Zero (2501.12948): reinforcement learning from a base model by rules alone, accuracy and format.

The miniature's base has seen sums whose columns stand in digits or in letters, mixed, half of them without delimiters
around the thought. Nothing in the rewards prefers an alphabet: which one it ends in is chance, as R1-Zero's languages.

Command:   python -m train --config=configs/pipelines/r1_zero.py --workdir=runs/r1_zero
           python -m train --config=configs/pipelines/r1_zero.py:hub --workdir=runs/r1_zero_hub \
               --config.init_from=/models/Qwen2.5-7B --config.data.path=/data/math     (not measured: docs/pods.md)
Hardware:  two CPU cores; of a published model a slice (docs/pods.md)
Time:      two minutes
Expect:    docs/results.md, "R1 in miniature"
Paper:     AIME 2024 15.6 -> 71.0 (majority of 64: 86.7)
"""

from ml_collections import ConfigDict

from configs import common
from configs.pipelines.shared import FORM, hub, pretrained, r1_rollouts, rollouts, small


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published hyper-parameters on a model in the Hub's layout."""
    if common.parse_arg(arg, hub=False).hub:
        config = hub("r1_zero")
        config.stages = ("zero",)
        config.stage.zero = r1_rollouts(10_400, {"accuracy": 1.0, "format": {"weight": 1.0}}, data=dict(template="r1"))
        return config
    config = small("r1_zero")
    config.stages = ("pretrained", "zero")
    config.stage.pretrained = pretrained()
    config.stage.zero = rollouts(100, {"accuracy": 1.0, "format": FORM})
    return config
