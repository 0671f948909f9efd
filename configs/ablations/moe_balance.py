"""Balance of a mixture of experts: nothing, a loss per sequence, a loss per batch, or a bias moved by rule.

DeepSeek-V3 (2412.19437, section 4.5.3) finds validation losses 2.258 (sequence), 2.253 (bias) and 2.253 (batch) at 1 B
parameters: the scope of the balance matters, more than its means. Look at `excess_loss` and `moe/max_violation`.

Command:   python -m launch.sweep --config=configs/ablations/moe_balance.py --workdir=runs/moe_balance
           python -m launch.report runs/moe_balance
Hardware:  two CPU cores
Expect:    excess_loss .29 / .33 / .31 / .28, max_violation 4.4 / .67 / .59 / .27 in that order: docs/results.md
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import mixture, over_seeds


def get_config() -> ConfigDict:
    """The recipe without balancing; the bias moves faster than the paper's 1e-3, for it has 300 steps, not 100,000."""
    return mixture("moe_balance")


def sweep() -> Iterator[dict[str, Any]]:
    """Four ways of balancing, three seeds."""
    yield from over_seeds({"model.moe.balance": balance} for balance in ("none", "sequence", "batch", "bias"))
