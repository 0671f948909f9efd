"""More demonstrations or reinforcement learning, at equal FLOPs: which keeps a rule that training no longer shows?

Two models can make 12 from three cards; one has seen one rule for the face cards, the other both. Each goes on under
the rule "J, Q and K count 10": by SFT, or by GRPO rewarded for a right expression. The splits (data/tasks/
general_points.py): `train`, hands of the values that are learnt from; `test`, values held out; `ood`, the other rule
with a face card; `ood_both`, those of its hands that can be solved under both. `translation` is the first part of the
answer, the values of the cards.

Command:   python -m train --config=configs/sft/general_points.py --workdir=runs/general_points/one
           python -m train --config=configs/sft/general_points.py:both --workdir=runs/general_points/both
           python -m launch.sweep --config=configs/ablations/general_points.py --workdir=runs/general_points/arms
           python -m launch.report runs/general_points/arms \
               --metrics=eval/accuracy_split_train,eval/accuracy_split_ood,eval/translation_split_ood
Hardware:  one CPU core
Time:      25 to 35 s of the core a run, 12 runs
Expect:    from both rules: in-distribution .76 -> .99 by SFT and .86 by GRPO, the other rule .32 -> .14 and .25;
           from one rule: 0 under the other; values held out: 0 everywhere (docs/results.md)
Paper:     2501.17161, GeneralPoints in language, the other rule: 11.5 % before, 15.0 % after RL, 3.4 % after SFT
Differs:   GRPO instead of PPO, one turn instead of five, a reward of 0 or 1, value tuples held out
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import over_seeds
from configs.sft import general_points

FOLDER = "runs/general_points"
GRPO_STEPS = 180


def flops(params: int, learnt: int, sampled: int = 0) -> int:
    """FLOPs of training: 6 for every parameter and token learnt from, 2 for every one sampled."""
    return params * (6 * learnt + 2 * sampled)


def sft_steps(grpo_steps: int) -> int:
    """Steps of SFT that cost what so many of GRPO do, where a step of either is as many tokens.

    GRPO samples the tokens that it learns from, each once; both begin at one model, which costs them the same.
    """
    return round(grpo_steps * flops(1, learnt=1, sampled=1) / flops(1, learnt=1))


def get_config() -> ConfigDict:
    """The shared start's task, one rule, at a constant rate; a step is 128 rows of either kind."""
    config = general_points.get_config()
    config.name = "general_points"
    config.init_from = f"{FOLDER}/one"
    config.steps = sft_steps(GRPO_STEPS)
    config.optimizer.update(lr=1e-4, warmup_steps=5, schedule="constant")
    config.rl.update(prompts=16, samples=8, max_new_tokens=32)
    config.eval.update(every=60, at_start=True)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """Two starts, two ways to go on."""
    for start in ("one", "both"):
        begin = {"init_from": f"{FOLDER}/{start}"}
        yield {"name": f"sft-{start}", **begin}
        yield {"name": f"grpo-{start}", "algorithm": "grpo", "steps": GRPO_STEPS, **begin}


def sweep() -> Iterator[dict[str, Any]]:
    """Four arms, three seeds."""
    yield from over_seeds(settings())
