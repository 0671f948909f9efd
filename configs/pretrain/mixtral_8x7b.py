"""Mixtral-8x7B on 128 v5p chips (v5p-256), two rows of 4,096 tokens a chip.

Does it fit, and train it:
    python -m launch.plan --config=configs/pretrain/mixtral_8x7b.py --topology=v5p:4x4x8
    python -m train --config=configs/pretrain/mixtral_8x7b.py --workdir=runs/mixtral_8x7b
"""

from ml_collections import ConfigDict

from configs.pretrain.shared import recipe


def get_config() -> ConfigDict:
    """The one variant there is."""
    return recipe("mixtral_8x7b", "mixtral_8x7b", rows=256, length=4096, mesh=dict(expert=8, fsdp=16))
