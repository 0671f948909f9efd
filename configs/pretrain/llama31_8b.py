"""Llama-3.1-8B on 256 v5e chips, a row of 8,192 tokens a chip.

Does it fit, and train it:
    python -m launch.plan --config=configs/pretrain/llama31_8b.py --topology=v5e:16x16
    python -m train --config=configs/pretrain/llama31_8b.py --workdir=runs/llama31_8b
"""

from ml_collections import ConfigDict

from configs.pretrain.shared import recipe


def get_config() -> ConfigDict:
    """The one variant there is."""
    return recipe("llama31_8b", "llama3_1_8b", rows=256, length=8192, mesh=dict(fsdp=256))
