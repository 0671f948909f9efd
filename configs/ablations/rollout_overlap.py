"""Where a step's time goes: rollout and update in turn, the next rollout beside the update, several updates a rollout.

32 rollouts of 16 groups of 8 in every arm. "sync" makes one update of each; "overlap" samples one rollout ahead while
the last is learnt from; "four" deals a rollout's rows into four updates. By default answers are judged in the sampling
process, in no time. With `pool` they are boxed decimals, judged by math-verify in two further processes.

Command:   python -m train --config=configs/sft/dynamic_sampling.py --workdir=runs/dynamic_sampling/start
           python -m launch.sweep --config=configs/ablations/rollout_overlap.py --workdir=runs/rollout_overlap/here
           python -m train --config=configs/sft/boxed_sums.py --workdir=runs/rollout_overlap/boxed
           python -m launch.sweep --config=configs/ablations/rollout_overlap.py:pool --workdir=runs/rollout_overlap/pool
           python -m launch.report runs/rollout_overlap/here --median --metrics=eval/accuracy,time/generate,\
time/reward,time/logps,time/update,time/batch:step_time,num_samples:step_time,num_tokens:step_time,\
rollout/staleness,sampling/sampling_logp_difference/mean
           ... and the same of runs/rollout_overlap/pool
Hardware:  two CPU cores
Time:      25 to 40 s of one core a run, 18 runs
Expect:    docs/results.md: on one core nothing is gained by overlapping, which on CPU can only fill what waits
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations import dynamic_sampling
from configs.ablations.small import over_seeds
from configs.sft import boxed_sums

ROLLOUTS = 32
PARTS = 4


def get_config(arg: str | None = None) -> ConfigDict:
    """The sums of configs/ablations/dynamic_sampling.py, or with `pool` boxed ones; evaluated at the end alone."""
    pool = common.parse_arg(arg, pool=False).pool
    config = dynamic_sampling.get_config()
    config.name = "rollout_overlap"
    config.steps = ROLLOUTS
    config.rl.track_kl = True  # the log-probs of a reference, as of a recipe with a KL, are part of the time
    config.eval.update(every=0, at_start=False)
    if pool:
        config.init_from = "runs/rollout_overlap/boxed"
        config.data.update(task="math", path=boxed_sums.FOLDER)
        config.data.options = ConfigDict(dict(suffix=""))
        config.eval.by = ""
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The arms, by name."""
    yield {"name": "sync"}
    yield {"name": "overlap", "rl.overlap": True}
    yield {"name": "four", "rl.minibatches": PARTS, "steps": PARTS * ROLLOUTS}


def sweep() -> Iterator[dict[str, Any]]:
    """Three arms, three seeds."""
    yield from over_seeds(settings())
