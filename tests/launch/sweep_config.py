"""A sweep of the smallest runs: two learning rates, one of them so large that its run breaks."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tests import tiny_config


def get_config() -> ConfigDict:
    """Six steps of one-digit addition; `broken` runs stop at their first update that is not finite."""
    config = tiny_config.get_config()
    config.max_bad_steps = 1
    config.eval.update(examples=0, loss_batches=1)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """A run that cannot be finished, and one that can."""
    for rate in (1e38, 3e-3):
        yield {"optimizer.lr": rate, "seed": 0}
