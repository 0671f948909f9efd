"""Whether rewards lift a model that thinks in states: GRPO with thoughts that differ between samples, and with none.

    sft  -> gate            eight samples of each training prompt: what is sometimes right can be lifted
         -> plain           thoughts that are the same in a group: its samples differ by their tokens alone
         -> dropout         each sample's thoughts under a mask of its own (Dropout-GRPO)
         -> permuted        the same with the rewards of other answers of the group: a control
    soft -> soft_gate
         -> none            soft thoughts, mixtures of five tokens, without noise
         -> one_sided       with noise that is never below 0 (Latent-GRPO)
         -> two_sided       with noise on both sides
         -> soft_permuted   one-sided, with permuted rewards: a control

The graphs are those of configs/ablations/coconut_prosqa.py; supervised training ends before its thoughts have taken the
place of both steps.

Command:   python -m launch.sweep --config=configs/ablations/thought_rewards.py --workdir=runs/thought_rewards
           python -m analysis.studies.roads "runs/thought_rewards/*" --metrics=accuracy
Hardware:  two CPU cores
Expect:    not measured over its seeds yet
Paper:     Latent-GRPO (2604.27998): +7.86 points over its start on four easy sets; Dropout-GRPO (2606.10184): GSM8K
           27.3 -> 29.0
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import coconut_prosqa
from configs.ablations.small import SEEDS

PERMUTED = {"rewards": {"accuracy": {"permuted": True}}}


def get_config() -> ConfigDict:
    """Two supervised stages, of states and of soft thoughts, and short runs of GRPO from each."""
    config = coconut_prosqa.get_config()
    config.name = "thought_rewards"
    arms: dict[str, dict[str, dict[str, Any]]] = {
        "sft": {"plain": {}, "dropout": {"thought_dropout": 0.1}, "permuted": {"thought_dropout": 0.1, **PERMUTED}},
        "soft": {
            "none": {},
            "one_sided": {"thought_noise": "one_sided"},
            "two_sided": {"thought_noise": "two_sided"},
            "soft_permuted": {"thought_noise": "one_sided", **PERMUTED},
        },
    }
    config.stage.sft = ConfigDict({"from": "base", "algorithm": "coconut", "steps": 850})
    config.stage.soft = ConfigDict(
        {"from": "base", "algorithm": "coconut", "steps": 850, "thoughts": {"feedback": "soft"}}
    )
    for start, rules in arms.items():
        gate = "gate" if start == "sft" else "soft_gate"
        asked = dict(n=8, least={"accuracy": 1.0}, examples=256, max_new_tokens=16)
        config.stage[gate] = ConfigDict({"from": start, "algorithm": "sample", "sample": asked})
        for name, changes in rules.items():
            config.stage[name] = ConfigDict(
                {
                    "from": start,
                    "algorithm": "grpo",
                    "steps": 100,
                    "optimizer": dict(lr=3e-4, warmup_steps=3, schedule="linear", final_fraction=0.1),
                    "rl": {"prompts": 32, "samples": 8, "max_new_tokens": 12, **changes},
                }
            )
    config.stages = ("sft", "gate", *arms["sft"], "soft", "soft_gate", *arms["soft"])
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
