"""What a chain of thought may be replaced by: thoughts, pause tokens, nothing; at once or step by step.

The methods of Coconut (2412.06769, section 4) on 2-digit products, with the steps of configs/sft/coconut.py each. The
paper finds on ProsQA that the curriculum alone ("no_thought", 95.5 %) explains most of what thoughts reach (97.0 %),
and on GSM8k that thoughts matter (34.1 % against 21.6 %). Look at `accuracy` and `mean_tokens`.

Command:   python -m launch.sweep --config=configs/ablations/coconut_methods.py --workdir=runs/coconut_methods
           python -m launch.report runs/coconut_methods
Hardware:  two CPU cores
Expect:    three seeds: CoT .92, all others .04 to .11; docs/results.md
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import over_seeds
from configs.sft import coconut

METHODS = ("cot", "no_cot", "coconut", "no_curriculum", "no_thought", "pause", "pause_as_thought", "icot")


def get_config() -> ConfigDict:
    """The recipe of configs/sft/coconut.py, evaluated once; iCoT takes its nine tokens away in three stages."""
    config = coconut.get_config()
    config.name = "coconut_methods"
    config.eval.every = 0
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    config.thoughts.removed_per_stage = 4
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Eight methods, three seeds."""
    yield from over_seeds({"thoughts.method": method} for method in METHODS)
