"""Budget forcing in miniature: what is "Wait" worth to a model that slips, and to one that does not? (s1)

Sums of digits with running sums; three in ten first passes hold a slip, a second pass, which three in ten thoughts
have, repairs most of them. Without slips in the training texts there is nothing that waiting could repair.

Command:   python -m launch.sweep --config=configs/ablations/budget_forcing.py --workdir=runs/budget_forcing
           python -m analysis.studies.budget_forcing "runs/budget_forcing/*"
Hardware:  two CPU cores, a minute a run; the study takes two more for each
Expect:    one wait: +.07 with slips, -.03 without; 4 waits and more cost accuracy (docs/results.md)
Paper:     2501.19393, figure 4 and table 3: accuracy rises with the budget, and with "Wait" until it levels off
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Three layers of width 64, 200 steps of 48 rows."""
    config = common.base()
    config.name = "budget_forcing"
    config.steps = 200
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=256, init_std=0.1)
    config.data.update(task="running_sums", length=136, batch_size=48)
    config.optimizer.update(lr=5e-3, warmup_steps=30, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, temperature=1.0, max_new_tokens=128)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds, with slips and without."""
    yield from over_seeds([{"data.options.slip": slip} for slip in (0.3, 0.0)])
