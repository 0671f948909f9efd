"""FP8 training against fp32: the supervised stage of the quickstart, with its dense products rounded in four ways.

DeepSeek-V3 (2412.19437, section 3.3 and appendix B.2) finds tiles of 1 x 128 within 0.25 % of the loss of bf16, and
blocks of 128 x 128 for gradients diverging at the size of 16 B parameters, far beyond this one. Here the products are
emulated, to the same numbers.

Command:   python -m launch.sweep --config=configs/ablations/fp8.py --workdir=runs/fp8
           python -m launch.report runs/fp8
Hardware:  two CPU cores, about 1 GB of memory
Expect:    eval/answer_loss .37, .38, .40, .36 in the order below, seeds apart by .05 (docs/results.md)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from configs.ablations.small import over_seeds

PRECISIONS = ("high", "fp8", "fp8_tensor", "fp8_block_gradient")


def get_config() -> ConfigDict:
    """The recipe; nothing is generated, the loss of held-out answers is measured."""
    config = quickstart.get_config()
    config.name = "fp8"
    config.update(config.stage.sft)
    config.stages, config.stage = (), ConfigDict()
    config.eval.update(examples=0, loss_batches=32, every=50)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Precision by seed."""
    yield from over_seeds({"model.precision": name} for name in PRECISIONS)
