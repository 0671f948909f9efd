"""Whether rewards lift what a recurrent model answers in one or two iterations: RLTT, a deeper teacher, GRPO.

    sft -> gate, gate_shallow: eight samples of the training prompts, at eight iterations and at one
        -> last          GRPO at eight iterations
        -> loops         the same rewards reach every iteration (RLTT, uniform)
        -> few_loops     iterations 1, 2, 4 and 8
        -> permuted      the same with rewards of other answers of the group: a control
        -> deeper        one iteration, taught by what it thought after eight before; no reward
        -> deeper_drawn  the same at depths drawn around two
        -> shallow       one iteration, taught by what it thought after one: a control, where nothing is to be learnt

Rewards can only lift what is sometimes right: `prompts_kept` of the gates is pass@8 on the training prompts, to be read
beside the accuracy after SFT before the rest. The sums are those of configs/pipelines/depth.py, whose supervised stage
trains few iterations rarely.

Command:   python -m launch.sweep --config=configs/ablations/depth_rewards.py --workdir=runs/depth_rewards
           python -m analysis.studies.roads "runs/depth_rewards/*" \
               --metrics=accuracy,accuracy_at_depth_1,accuracy_at_depth_2,accuracy_at_depth_4,accuracy_at_depth_8 \
               --claim="loops.accuracy_at_depth_1 > last.accuracy_at_depth_1" \
               --claim="deeper.accuracy_at_depth_1 > last.accuracy_at_depth_1"
Hardware:  two CPU cores
Expect:    docs/results.md, "Recurrent depth: adding in the head"; seed 0, and most stages of seed 1
Paper:     RLTT (2602.10520): +5.8 points over GRPO on four mathematical sets (1.4B), +10.9 (2.6B), at the last loop
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import SEEDS
from configs.pipelines import depth

DEPTHS = (1, 2, 4, 8)


def get_config() -> ConfigDict:
    """Two layers again and again between two others, eight iterations; from one supervised stage, seven short runs."""
    config = depth.get_config()
    config.name = "depth_rewards"
    config.eval.depths = DEPTHS
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    arms: dict[str, Any] = {
        "last": {},
        "loops": {"loops": "uniform"},
        "few_loops": {"loops": "uniform", "loops_at": DEPTHS},
        "permuted": {"loops": "uniform", "loops_at": DEPTHS, "rewards": {"accuracy": {"permuted": True}}},
        "deeper": {"teacher": "start", "teacher_depth": 8, "rewards": {"accuracy": 0.0}},
        "deeper_drawn": {"teacher": "start", "teacher_depth": 8, "rewards": {"accuracy": 0.0}, "depth": "drawn"},
        "shallow": {"teacher": "start", "teacher_depth": 1, "rewards": {"accuracy": 0.0}},
    }
    config.stages = ("sft", "gate", "gate_shallow", *arms)
    config.stage = ConfigDict(dict(sft=dict(algorithm="sft", steps=360)))
    asked = dict(n=8, least={"accuracy": 1.0}, examples=512, max_new_tokens=8)
    config.stage.gate = ConfigDict({"from": "sft", "algorithm": "sample", "sample": asked})
    config.stage.gate_shallow = ConfigDict(
        {"from": "sft", "algorithm": "sample", "sample": asked, "model": {"recurrent": {"mean": 1}}}
    )
    for name, rules in arms.items():
        few = 2 if "depth" in rules else 1
        mean = {"model": {"recurrent": {"mean": few}}} if "teacher" in rules else {}
        config.stage[name] = ConfigDict(
            {
                "from": "sft",
                "algorithm": "grpo",
                "steps": 60,
                # The root of a moment as small as rounding must not be divided by: the control would walk at random.
                "optimizer": dict(lr=2e-4, warmup_steps=3, schedule="linear", final_fraction=0.1, eps=1e-6),
                "rl": {"prompts": 32, "samples": 8, "max_new_tokens": 8, **rules},
                **mean,
            }
        )
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
