"""Exact rewards where no answer was ever shown: GRPO on difficulties beyond those of SFT, one iteration for every step.

    sft -> gate       eight samples of each training prompt of GRPO: what is sometimes right can be lifted
        -> harder     GRPO on five to eight steps, which SFT did not show
        -> permuted   the same with the rewards of other answers of the group: a control
        -> same       GRPO on the one to four steps of SFT: a control

The model is the loop of configs/ablations/depth_by_example.py, trained on one to four steps at a constant rate. When it
begins to answer further ones differs much between seeds, and comes and goes; supervised training ends about there.

Command:   python -m launch.sweep --config=configs/ablations/depth_rl.py --workdir=runs/depth_rl
           python -m analysis.studies.roads "runs/depth_rl/*" --metrics=accuracy,accuracy_steps_4,accuracy_steps_5,\
accuracy_steps_6,accuracy_steps_7,accuracy_steps_8,accuracy_steps_10,accuracy_steps_12
Hardware:  two CPU cores
Expect:    docs/results.md, "Rewards beyond what was shown"
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import depth_by_example

SHOWN, ASKED = dict(min_steps=1, max_steps=4), dict(min_steps=5, max_steps=8)
BEGINS = (550, 900, 300, 650)  # by seed: steps of SFT after which rows five steps on are sometimes right


def get_config() -> ConfigDict:
    """One supervised stage and three of GRPO, evaluated on one to twelve steps."""
    config = depth_by_example.get_config()
    config.name = "depth_rl"
    config.data.options.update(test_min_steps=1, **SHOWN)
    asks = {"data": {"options": config.data.options.to_dict() | ASKED}}
    config.model.recurrent.grad_steps = 8
    arms: dict[str, Any] = {
        "harder": asks,
        "permuted": {**asks, "rl": {"rewards": {"accuracy": {"permuted": True}}}},
        "same": {},
    }
    config.stages = ("sft", "gate", *arms)
    config.stage.sft = ConfigDict(dict(algorithm="sft", steps=BEGINS[0]))
    config.optimizer.schedule = "constant"
    asked = dict(n=8, least={"accuracy": 1.0}, examples=256, depth="task", max_new_tokens=13)
    config.stage.gate = ConfigDict({"from": "sft", "algorithm": "sample", "sample": asked, **asks})
    for name, changes in arms.items():
        config.stage[name] = ConfigDict(
            {
                "from": "sft",
                "algorithm": "grpo",
                "steps": 60,
                "micro_batch": 64,
                "optimizer": dict(lr=3e-4, warmup_steps=3, schedule="linear", final_fraction=0.1),
                **changes,
            }
        )
        rules = dict(prompts=32, samples=8, max_new_tokens=13, depth="task", max_depth=8)
        config.stage[name].rl = ConfigDict(rules | changes.get("rl", {}))
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Four seeds."""
    for seed, steps in enumerate(BEGINS):
        yield {"seed": seed, "stage.sft.steps": steps}
