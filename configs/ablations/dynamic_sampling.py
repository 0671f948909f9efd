"""Dynamic sampling at equal samples: groups of equal rewards replaced (DAPO), or as many samples spent otherwise.

All arms begin at one model whose groups of eight are all right or all wrong more than half of the time and then teach
nothing. "plain" learns from 16 groups as they come; "refill" draws further rounds of 16 until 16 groups teach something
and takes a third of the steps. "wide" draws as many samples in a step as "refill" does and learns from all of them: the
control for more samples in a step. "faster" and "refill-faster" are the first two at three times the rate.

Command:   python -m train --config=configs/sft/dynamic_sampling.py --workdir=runs/dynamic_sampling/start
           python -m launch.sweep --config=configs/ablations/dynamic_sampling.py --workdir=runs/dynamic_sampling/arms
           python -m launch.report runs/dynamic_sampling/arms --over=num_samples --at=14000 \
               --metrics=eval/accuracy,frac_reward_zero_std
Hardware:  one CPU core
Time:      25 to 70 s of the core a run, 15 runs
Expect:    after 50 updates .48 plain, .52 refill, .53 wide; after 14,000 samples .54, .50, .50: replacing groups is
           worth what a larger batch is worth, and saves the larger batch's update (docs/results.md)
Paper:     2503.14476, section 3.2: as accurate after fewer steps; verl's reproduction has 52 % on AIME 2024, 50 %
           without it
Differs:   no penalty for long answers; sums of at most six digits
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds

FOLDER = "runs/dynamic_sampling"
STEPS = 50  # of an arm that draws about three rounds a step
ROUNDS = 3


def get_config() -> ConfigDict:
    """GRPO of 16 groups of 8 on sums of one to six digits, from the shared model."""
    config = common.base()
    config.name = "dynamic_sampling"
    config.algorithm = "grpo"
    config.steps = STEPS * ROUNDS
    config.init_from = f"{FOLDER}/start"
    config.optimizer.update(lr=1e-4, warmup_steps=5)
    config.data.task = "addition"
    config.data.options = ConfigDict(dict(digits=1, max_digits=6, direct_share=0.0))
    config.rl.update(prompts=16, samples=8, max_new_tokens=64)
    config.eval.update(examples=500, max_new_tokens=64, temperature=1.0, by="digits", at_start=True)
    config.eval.every = 10 * ROUNDS
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The arms, by name; all draw about as many samples, and are evaluated after about as many."""
    costly = {"steps": STEPS, "eval.every": 10}
    yield {"name": "plain"}
    yield {"name": "refill", "rl.refill": 10, **costly}
    yield {"name": "wide", "rl.prompts": 16 * ROUNDS, **costly}
    yield {"name": "faster", "optimizer.lr": 3e-4}
    yield {"name": "refill-faster", "rl.refill": 10, "optimizer.lr": 3e-4, **costly}


def sweep() -> Iterator[dict[str, Any]]:
    """Five arms, three seeds."""
    yield from over_seeds(settings())
