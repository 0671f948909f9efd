"""LIMO (2502.03387): a few hundred chosen traces teach a model that knows its mathematics to reason.

    pretrained -> chosen (few, clean), as_many (as many of the base's own kind: the control)

Which traces are chosen: `python -m data.select limo` (docs/selection.md). In the miniature they are clean thoughts, in
one alphabet and with delimiters.

Command:   python -m train --config=configs/pipelines/limo.py --workdir=runs/limo
           python -m train --config=configs/pipelines/limo.py:hub --workdir=runs/limo_hub \
               --config.init_from=/models/Qwen2.5-32B-Instruct --config.data.path=/data/math   (not measured)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      two minutes
Expect:    docs/results.md, "Recipes"
Paper:     800 traces, 15 epochs at 5e-6 with cosine and no warm-up, batches of 64: AIME 2024 63.3, MATH500 95.6; base
           16.5, 79.4; 100 k of NuminaMath 6.5, 59.2
"""

from ml_collections import ConfigDict

from configs import common
from configs.pipelines.shared import CLEAN, MESSY, hub, pretrained, small, stage

CHOSEN = 128


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published hyper-parameters on a model in the Hub's layout."""
    if common.parse_arg(arg, hub=False).hub:
        config = hub("limo", 16384)
        config.data.system = "Please reason step by step, and put your final answer within \\boxed{}."
        config.stages = ("chosen",)
        chosen = dict(split="limo", batch_size=64)
        schedule = dict(lr=5e-6, warmup_steps=0, schedule="cosine")
        config.stage.chosen = stage(algorithm="sft", steps=188, data=chosen, optimizer=schedule)
        return config
    config = small("limo")
    config.stages = ("pretrained", "chosen", "as_many")
    config.stage.pretrained = pretrained()
    learnt = dict(algorithm="sft", steps=30, optimizer=dict(lr=1e-3, warmup_steps=0))
    clean, messy = (dict(options=dict(kind, train_size=CHOSEN)) for kind in (CLEAN, MESSY))
    config.stage.chosen = stage(start="pretrained", data=clean, **learnt)
    config.stage.as_many = stage(start="pretrained", data=messy, **learnt)
    return config
