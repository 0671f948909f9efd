"""Small models learn less from long thoughts (2502.12143): short, long and mixed traces into two sizes of students.

A long thought checks every column and begins half of them with a wrong sum that it takes back; mixed traces have one
long thought in five. All students see as many examples, no trace is cut, and answers may be as long as any trace.

Command:   python -m train --config=configs/pipelines/small_students.py --workdir=runs/small_students
           python -m launch.sweep --config=configs/pipelines/small_students.py --workdir=runs/small_students_seeds
           python -m train --config=configs/pipelines/small_students.py:hub --workdir=runs/small_students_hub \
               --config.init_from=/models/Qwen2.5-1.5B-Instruct --config.data.path=/data/math  (not measured)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      four minutes
Expect:    docs/results.md, "Small students"
Paper:     students of 3B and less do better on short chains of thought, larger ones on long ones; a mixture of one long
           to four short is best for 3B (lr 1e-5, two epochs)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import SEEDS
from configs.pipelines.shared import hub, small, stage

SIZES = {
    "small": dict(d_model=32, n_layers=2, n_heads=2, d_ff=96, init_std=0.15),
    "large": dict(d_model=96, n_layers=2, n_heads=4, d_ff=288, init_std=0.1),
}
SHARES = {"short": 0.0, "long": 1.0, "mixed": 0.2}


def get_config(arg: str | None = None) -> ConfigDict:
    """Six students; with `hub` a published one on the splits short, long and mixed of a folder of traces."""
    if common.parse_arg(arg, hub=False).hub:
        config = hub("small_students")
        config.stages = tuple(f"{kind}_student" for kind in SHARES)
        for kind in SHARES:
            config.stage[f"{kind}_student"] = stage(start="base", algorithm="sft", steps=1000, data=dict(split=kind))
        return config
    config = small("small_students")
    config.data.length = config.model.max_length = 80
    config.eval.max_new_tokens = 64
    config.stages = tuple(f"{size}_{kind}" for size in SIZES for kind in SHARES)
    for size, sizes in SIZES.items():
        for kind, share in SHARES.items():
            traces = dict(options=dict(digits=2, direct_share=0.0, long_share=share))
            learnt = dict(algorithm="sft", steps=500, data=traces, model=sizes)
            config.stage[f"{size}_{kind}"] = stage(start="base", **learnt)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
