"""Whether a model learns to think no longer than it must: GRPO that charges for iterations, drawn at the prompt's end.

    joint -> free       depths are drawn from the gate and learnt from, by model and gate; iterations cost nothing
          -> cost       the same, and an iteration costs .02 of an answer's reward
          -> dear       an iteration costs .1
          -> blind      .02, with the accuracy of other answers of the group: a control, which should stop at once
          -> alone      .02, and the gate alone learns, beside a frozen model
          -> scaled     .02, and advantages are divided by the deviation of their group, as in GRPO
          -> stage_two  the gate alone, by what every iteration gains (Ouro's second stage): no reward

Rows of a cellular automaton after one to four steps, none written down. In the joint stage all of six iterations
predict, weighed by the gate, whose bonus of entropy spreads it over iterations that are equally right. Rewards are not
divided by the deviation of their group (`rl.scale=none`): where a group is all right, or all wrong, only the cost
differs, and after the division it would weigh as much as accuracy does elsewhere.

Command:   python -m launch.sweep --config=configs/ablations/depth_exits.py --workdir=runs/depth_exits
           python -m analysis.studies.roads "runs/depth_exits/*" --metrics=accuracy,mean_depth \
               --claim="dear.mean_depth < joint.mean_depth" --claim="dear.accuracy > joint.accuracy"
           python -m analysis.exits runs/depth_exits/seed=?/dear --before runs/depth_exits/seed=?/joint --depth=6 \
               --criteria gate prompt_gate
Hardware:  two CPU cores
Time:      a quarter of an hour a seed on one core
Expect:    joint .92 at 3.7 iterations, dear .95 at 3.0; docs/results.md, "Charged for iterations"
Paper:     Ouro (2510.25741) stops by a threshold on a gate that never saw a reward; RL on it brought nothing there
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import SEEDS

ALONE = {"model": {"recurrent": {"exit_stage": "gate"}}}


def get_config() -> ConfigDict:
    """One layer run up to six times; from one supervised stage, six short runs of GRPO and one of the gate alone."""
    config = common.base()
    config.name = "depth_exits"
    config.model.update(d_model=64, n_layers=1, n_heads=4, d_ff=192, max_length=28, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=0, core=1, coda=0, mean=6, injection="none", start="embedding")
    config.model.recurrent.update(readout="loop", exit_gate=True)
    config.data.update(task="automaton", length=28, batch_size=64)
    config.data.options = ConfigDict(dict(width=8, max_steps=4))
    config.optimizer.update(lr=3e-3, warmup_steps=40, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=512, max_new_tokens=9, by="steps", depth="gate", depths=(1, 2, 3, 4, 5, 6))
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    arms: dict[str, dict[str, Any]] = {
        "free": {},
        "cost": {"depth_cost": 0.02},
        "dear": {"depth_cost": 0.1},
        "blind": {"depth_cost": 0.02, "rewards": {"accuracy": {"permuted": True}}},
        "alone": {"depth_cost": 0.02},
        "scaled": {"depth_cost": 0.02, "scale": "group"},
    }
    config.stages = ("joint", *arms, "stage_two")
    config.stage.joint = ConfigDict(dict(algorithm="sft", steps=1000))
    config.stage.stage_two = ConfigDict(
        {"from": "joint", "algorithm": "sft", "steps": 100, "optimizer": dict(lr=1e-2, warmup_steps=0), **ALONE}
    )
    for name, rules in arms.items():
        config.stage[name] = ConfigDict(
            {
                "from": "joint",
                "algorithm": "grpo",
                "steps": 150,
                "optimizer": dict(lr=1e-3, warmup_steps=3, schedule="linear", final_fraction=0.1),
                "rl": {"prompts": 32, "samples": 8, "max_new_tokens": 9, "depth": "gate", "scale": "none", **rules},
            }
        )
    config.stage.alone.update(ALONE)
    config.stage.alone.optimizer.lr = 1e-2
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
