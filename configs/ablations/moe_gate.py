"""The router's score, sigmoid (DeepSeek-V3) or softmax (Mixtral, DeepSeek-V2), balanced by batch loss or by bias.

Command:   python -m launch.sweep --config=configs/ablations/moe_gate.py --workdir=runs/moe_gate
           python -m launch.report runs/moe_gate
Hardware:  two CPU cores
Expect:    excess_loss .31 / .28 with sigmoid, .17 / .18 with softmax: not what DeepSeek-V3 chose (docs/results.md)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import mixture, over_seeds


def get_config() -> ConfigDict:
    """The recipe of moe_balance.py."""
    return mixture("moe_gate")


def sweep() -> Iterator[dict[str, Any]]:
    """Two scores under two ways of balancing, three seeds."""
    yield from over_seeds(
        {"model.moe.score": score, "model.moe.balance": balance}
        for score in ("sigmoid", "softmax")
        for balance in ("batch", "bias")
    )
