"""One prompt or two hundred: how much of reinforcement learning from one example is the form of the answer.

All arms begin at one model, right in a third of its samples, which leaves out the mark of its answer two times in
five. "high", "low" and "zero" learn from one prompt, by the rank of the variance of its accuracy while "pool" learnt
from 200. "format" is paid for the mark alone, right or wrong, on the pool, and "format-high" on one prompt; "entropy"
has the entropy bonus and the KL and no policy gradient. The loss and its coefficients are those of the recipe.

Command:   python -m train --config=configs/sft/one_shot.py --workdir=runs/one_shot/start
           python -m launch.sweep --config=configs/ablations/one_shot.py --workdir=runs/one_shot/arms --filter=pool
           python -m rl.select runs/one_shot/arms/pool,seed=0 --ranks=1 --out=runs/one_shot/high.jsonl
           python -m rl.select runs/one_shot/arms/pool,seed=0 --ranks=120 --out=runs/one_shot/low.jsonl
           python -m rl.select runs/one_shot/arms/pool,seed=0 --ranks=200 --out=runs/one_shot/zero.jsonl
           python -m launch.sweep --config=configs/ablations/one_shot.py --workdir=runs/one_shot/arms
           python -m launch.report runs/one_shot/arms --metrics=eval/accuracy,eval/readable
Hardware:  one CPU core
Time:      30 to 45 s of the core a run, 21 runs
Expect:    accuracy .33 before; pool .51, high .40, low .38, zero .25, format .42 (one seed decays), format-high .41,
           entropy .23: what one prompt gains is the form of the answer (docs/results.md)
Paper:     2504.20571, MATH500 of Qwen2.5-Math-1.5B: 36.0 %; 73.6 % from one problem and from 1,209, 65.0 % from the
           format alone, 63.4 % from entropy alone
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import over_seeds
from configs.grpo import one_shot

FOLDER = "runs/one_shot"
HIGH = {"data.split": f"{FOLDER}/high.jsonl"}
FORMAT = {"rl.rewards.accuracy": 0.0, "rl.rewards.marked.weight": 1.0}


def get_config() -> ConfigDict:
    """The recipe's `scratch`, from the shared model."""
    config = one_shot.get_config("scratch")
    config.init_from = f"{FOLDER}/start"
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The arms, by name."""
    yield {"name": "pool"}
    yield {"name": "high", **HIGH}
    yield {"name": "low", "data.split": f"{FOLDER}/low.jsonl"}
    yield {"name": "zero", "data.split": f"{FOLDER}/zero.jsonl"}
    yield {"name": "format", **FORMAT}
    yield {"name": "format-high", **HIGH, **FORMAT}
    yield {"name": "entropy", **HIGH, "rl.policy_coef": 0.0}


def sweep() -> Iterator[dict[str, Any]]:
    """Seven arms, three seeds."""
    yield from over_seeds(settings())
