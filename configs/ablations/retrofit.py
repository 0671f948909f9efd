"""Whether a trained stack gains more from being made recurrent than from being trained on, at equal FLOPs.

    trained -> stack      the stack goes on as it is
            -> ramp       its four layers become prelude, core of two and coda; the mean depth rises to eight
            -> no_ramp    the same at a mean depth of eight from the start

The sums are those of configs/pipelines/depth.py. `stack` has 2.7 times the steps of the others, which makes the FLOPs
of the three alike (`compute/flops` in their metrics).

Command:   python -m launch.sweep --config=configs/ablations/retrofit.py --workdir=runs/retrofit_or_not
           python -m analysis.studies.roads "runs/retrofit_or_not/*" --metrics=accuracy,accuracy_at_depth_4 \\
               --claim="ramp.accuracy > stack.accuracy" --claim="ramp.accuracy > no_ramp.accuracy"
Hardware:  two CPU cores
Expect:    not measured over its seeds yet
Paper:     2511.07384: better than post-training the stack at equal FLOPs (TinyLlama, OLMo, Llama)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import SEEDS
from configs.pipelines import depth

STEPS, RATIO = 150, 2.7


def get_config() -> ConfigDict:
    """A stack of four layers that answers some of the sums, and three ways on from it."""
    config = depth.get_config()
    config.name = "retrofit_or_not"
    config.algorithm = "sft"
    config.model.depth = "stack"
    config.eval.update(examples=512, depths=())
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    core = dict(prelude=1, core=2, coda=1, injection="concat", start="zero", readout="none", draw="poisson")
    more = dict(
        model=dict(depth="recurrent", recurrent=core | dict(mean=8, grad_steps=4)), eval=dict(depths=(1, 4, 16))
    )
    arms: dict[str, dict[str, Any]] = {"stack": {"steps": round(RATIO * STEPS)}, "no_ramp": {"steps": STEPS, **more}}
    ramp = ConfigDict(arms["no_ramp"])
    ramp.model.recurrent.ramp = STEPS // 2
    config.stages = ("trained", "stack", "ramp", "no_ramp")
    config.stage = ConfigDict(dict(trained={"from": "base", "steps": 250}))
    rate = dict(lr=1e-3, warmup_steps=10)
    for name, changes in (arms | {"ramp": ramp.to_dict()}).items():
        config.stage[name] = ConfigDict({"from": "trained", "optimizer": rate, **changes})
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
