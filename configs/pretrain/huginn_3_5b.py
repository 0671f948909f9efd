"""Huginn-3.5B, its core run about 32 times, on 64 v5p chips (v5p-128), two rows of 4,096 tokens a chip.

Does it fit, and train it:
    python -m launch.plan --config=configs/pretrain/huginn_3_5b.py --topology=v5p:4x4x4
    python -m train --config=configs/pretrain/huginn_3_5b.py --workdir=runs/huginn_3_5b
"""

from ml_collections import ConfigDict

from configs.pretrain.shared import recipe


def get_config() -> ConfigDict:
    """The one variant there is."""
    config = recipe("huginn_3_5b", "huginn_3_5b", rows=128, length=4096, mesh=dict(data=4, fsdp=16))
    config.eval.slots = 64  # one a chip: keys of 32 iterations of the core's four layers take 11 GB a slot
    return config
