"""Many answers or one long thought, at equal compute: addition, countdown, and a recurrent model.

Half of the sums are shown with their columns written down, half with the answer alone, so that the model can do both.
Countdown has no written thought; the recurrent model thinks in iterations of its core.

Command:   python -m launch.sweep --config=configs/ablations/equal_compute.py --workdir=runs/equal_compute
           python -m analysis.studies.equal_compute "runs/equal_compute/*"
Hardware:  two CPU cores
Expect:    sums: one chain .92, eight answers for less .03 by vote; see docs/results.md
Paper:     2408.03314, figure 1, and 2501.19393, figure 4: on easy questions a longer chain, else several answers
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Three layers of width 64, 400 steps of 64 rows; sums of three digits."""
    config = common.base()
    config.name = "equal_compute"
    config.steps = 400
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=96, init_std=0.1)
    config.data.update(task="addition", length=48, batch_size=64)
    config.data.options = ConfigDict(dict(direct_share=0.5))
    config.optimizer.update(lr=5e-3, warmup_steps=30, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, temperature=1.0, max_new_tokens=40)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The three models, by name."""
    yield {"name": "addition"}
    yield {"name": "countdown", "data.task": "countdown", "data.options.max_numbers": 3}
    yield {
        "name": "recurrent",
        "data.task": "automaton",
        "data.options.width": 10,
        "data.options.max_steps": 4,
        "data.length": 24,
        "model.depth": "recurrent",
        "model.norm": "sandwich",
        "model.recurrent.prelude": 1,
        "model.recurrent.core": 1,
        "model.recurrent.coda": 1,
        "model.recurrent.mean": 8,
        "model.recurrent.draw": "poisson",
        "model.recurrent.grad_steps": 8,
        "optimizer.lr": 3e-3,
        "steps": 600,
    }


def sweep() -> Iterator[dict[str, Any]]:
    """Three models, three seeds."""
    yield from over_seeds(settings())
