"""What the ablations of layers share: a small language model on random languages, and its seeds.

Eight languages over the same twelve letters, order 2: 1,152 contexts to remember, told apart by a letter at the start
of each row. Their entropy is known, 0.995 nats a symbol (data/tasks/languages.py), and `eval/excess_loss` is what a
model loses beyond it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common

SEEDS = (0, 1, 2)


def languages(name: str) -> ConfigDict:
    """Two layers of width 64, 300 steps of 32 rows of 64 tokens; the held-out loss is measured, nothing generated.

    Rows are cut from longer texts, so that every predicted token is a symbol.
    """
    config = common.base()
    config.name = name
    config.steps = 300
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=128, max_length=64, init_std=0.1)
    config.data.update(task="languages", length=64, batch_size=32, too_long="truncate")
    config.data.options = ConfigDict(dict(domains=8, symbols=12, order=2, branching=3, length=64))
    config.optimizer.update(lr=5e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=0, loss_batches=16, every=50, max_new_tokens=1)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def mixture(name: str) -> ConfigDict:
    """The same with 16 routed experts in each layer, two per token, each half as wide as a dense feed-forward."""
    config = languages(name)
    config.model.ffn = "moe"
    config.model.moe.update(n_experts=16, top_k=2, d_expert=64, score="sigmoid", bias_rate=0.01)
    return config


def over_seeds(settings: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every setting with every seed, one seed after the other: after a third of the time there is a whole table."""
    rows = list(settings)
    for seed in SEEDS:
        for row in rows:
            yield {**row, "seed": seed}
