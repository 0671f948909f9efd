"""What repeating buys: a recurrent core against the same layers run once, on sums answered without a step written down.

All models have one layer before, two in the core and one after, and (but for the injection's map) the same parameters.
"recurrent" is trained at 1 + Poisson(7) iterations, "once" is the same model trained and used at one iteration, the
control; "stack" is a plain stack of the four layers. The dial is `--config.data.options.digits`.

Command:   python -m launch.sweep --config=configs/ablations/depth_twin.py --workdir=runs/depth_twin
           python -m launch.report runs/depth_twin --metrics=eval/accuracy,eval/accuracy_at_depth_1
Hardware:  two CPU cores
Expect:    not measured over its seeds yet
Paper:     2502.05171, table 4: at 180 B tokens GSM8K 9.0 % against 1.8 % for a stack of the same layers
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import over_seeds
from configs.pipelines import depth


def get_config() -> ConfigDict:
    """The supervised stage of configs/pipelines/depth.py."""
    config = depth.get_config()
    config.name = "depth_twin"
    config.update(config.stage.sft)
    config.steps = 450
    config.stages, config.stage = (), ConfigDict()
    config.eval.update(examples=256)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The models compared, by name."""
    yield {"name": "recurrent"}
    yield {"name": "once", "model.recurrent.mean": 1, "model.recurrent.draw": "fixed"}
    yield {"name": "stack", "model.depth": "stack", "eval.depths": ()}


def sweep() -> Iterator[dict[str, Any]]:
    """Three models, three seeds."""
    yield from over_seeds(settings())
