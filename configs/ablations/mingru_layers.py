"""How many layers selective copying takes: gates that see the input alone need a second layer to know what came before.

In the paper (2410.01201) minGRU reaches 37.0, 96.8 and 99.5 % with 1, 2 and 3 layers, at 16 letters in 4,096 places and
400,000 steps. Here: 4 letters in 64 places, 800 steps; `eval/accuracy` is the share of letters that are right.

Command:   python -m launch.sweep --config=configs/ablations/mingru_layers.py --workdir=runs/mingru_layers
Hardware:  two CPU cores
Expect:    53, 83 and 80 % with 1, 2 and 3 layers (docs/results.md)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Two layers of width 64, states of width 128, trained by Muon, which takes half of AdamW's steps here."""
    config = common.base()
    config.name = "mingru_layers"
    config.steps = 800
    config.model.update(d_model=64, n_layers=2, n_heads=1, d_ff=128, max_length=72, tied=False, init_std=0.3)
    config.model.update(mixer="mingru", positions="none")
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
