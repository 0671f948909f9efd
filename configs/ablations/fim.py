"""How much filling in the middle costs, and what it buys, by the share of documents that are rearranged (2207.14255).

Documents are sums of digits with the sum so far written down place by place, so that a middle that is missing follows
from what stands around it. After training, the loss from left to right is measured on documents as they are, and the
study `infilling` asks for middles.

Command:   python -m launch.sweep --config=configs/ablations/fim.py --workdir=runs/fim
           python -m analysis.studies.infilling "runs/fim/*"
Hardware:  two CPU cores
Expect:    loss .316, .323, .341, .456 at rates 0, .5, .9, 1; middles filled in by SPM 0, 1, 1, 1 (docs/results.md)
Paper:     2207.14255, figures 1 and 3: the loss from left to right is the same up to a rate of .9; middles are filled
           in only by models that were trained to
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Three layers of width 64, 500 steps of 32 rows of 96 tokens."""
    config = common.base()
    config.name = "fim"
    config.algorithm = "pretrain"
    config.steps = 500
    config.corpus.sources = ConfigDict(dict(sums=dict(task="running_sums", options=dict(again=0.0, slip=0.0))))
    # A vocabulary with the tokens that mark the parts at every rate; of rate 0 none is ever rearranged.
    config.corpus.fim = 0.5
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=96, init_std=0.1)
    config.data.update(length=96, batch_size=32)
    config.optimizer.update(lr=5e-3, warmup_steps=30, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=0, loss_batches=16)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """Shares of rearranged documents; half of them suffix first."""
    for rate in (1e-9, 0.5, 0.9, 1.0):
        yield {"corpus.fim": rate, "corpus.fim_spm": 0.5}


def sweep() -> Iterator[dict[str, Any]]:
    """Four rates, three seeds."""
    yield from over_seeds(settings())
