"""Llama-2-70B on 256 v5p chips (v5p-512), two rows of 4,096 tokens a chip.

Does it fit, and train it:
    python -m launch.plan --config=configs/pretrain/llama2_70b.py --topology=v5p:4x8x8
    python -m train --config=configs/pretrain/llama2_70b.py --workdir=runs/llama2_70b
"""

from ml_collections import ConfigDict

from configs.pretrain.shared import recipe


def get_config() -> ConfigDict:
    """The one variant there is."""
    return recipe("llama2_70b", "llama2_70b", rows=512, length=4096, mesh=dict(fsdp=256))
