"""tbd"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """tbd"""
    config = common.base()
    config.name = "mingru_layers"
    config.steps = 800
    config.model.update(
        d_model=64, n_layers=2, n_heads=1, d_ff=128, max_length=72, init_std=0.3, mixer="mingru", positions="none"
    )
    config.model.tied = False
    config.model.rnn.expansion = 2.0
    config.data.update(task="selective_copying", length=70, batch_size=64)
    config.data.options = ConfigDict(dict(length=64, tokens=4))
    config.optimizer.update(name="muon", lr=1e-2, warmup_steps=40, schedule="cosine", final_fraction=0.05)
    config.eval.update(examples=1000, max_new_tokens=1)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """1, 2 and 3 layers, three seeds each."""
    yield from over_seeds({"model.n_layers": layers} for layers in (1, 2, 3))
