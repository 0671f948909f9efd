"""What the core is made of: a dense feed-forward or a mixture of experts with as many parameters active.

Eight experts of half the width, two of them per token: what is computed is the same, the core stores four times as
much.

Command:   python -m launch.sweep --config=configs/ablations/depth_core.py --workdir=runs/depth_core --parallel=2
           python -m launch.report runs/depth_core --metrics=eval/accuracy,eval/accuracy_steps_6
Hardware:  two CPU cores
Expect:    dense .92, experts .90 over three seeds; docs/results.md
Paper:     none that compares them at equal active parameters in a recurrent core
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import depth_dial
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """The recurrent model of depth_dial.py."""
    config = depth_dial.get_config()
    config.name = "depth_core"
    config.model.moe.update(n_experts=8, top_k=2, d_expert=96, score="softmax", balance="sequence")
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Two cores, three seeds."""
    yield from over_seeds([{"name": "dense"}, {"name": "experts", "model.ffn": "glu,moe,glu"}])
