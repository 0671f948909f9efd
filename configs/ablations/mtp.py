"""Multi-token prediction off and on: is the next token predicted better by a model that also learnt the one after it?

The module is trained with and not evaluated, so that both models cost the same afterwards. The `loss` of training
includes the module's: compare the figures under `eval/`.

Command:   python -m launch.sweep --config=configs/ablations/mtp.py --workdir=runs/mtp
           python -m launch.report runs/mtp
Hardware:  two CPU cores
Expect:    eval/excess_loss .32 without, .34 with: no difference beyond the seeds (docs/results.md)
Paper:     2412.19437, table 4: most benchmarks gain (HumanEval 44.5 -> 53.7, GSM8K 72.3 -> 74.0 at 230B), the
           next-token loss hardly moves (Pile-test .658 -> .657 bits per byte)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import languages, over_seeds


def get_config() -> ConfigDict:
    """A dense model."""
    return languages("mtp")


def sweep() -> Iterator[dict[str, Any]]:
    """No module and one, three seeds."""
    yield from over_seeds({"model.mtp.depth": depth} for depth in (0, 1))
