"""DeepSeek-V3 671B with its module of multi-token prediction on 1,024 v5p chips (v5p-2048).

Does it fit, and train it:
    python -m launch.plan --config=configs/pretrain/deepseek_v3.py --topology=v5p:8x8x16
    python -m train --config=configs/pretrain/deepseek_v3.py --workdir=runs/deepseek_v3
"""

from ml_collections import ConfigDict

from configs.pretrain.shared import recipe


def get_config() -> ConfigDict:
    """The one variant there is."""
    config = recipe(
        "deepseek_v3", "deepseek_v3", rows=2048, length=4096, mesh=dict(expert=8, fsdp=128), mtp=dict(depth=1)
    )
    # The paper's rate of filling in the middle; the share of split tokens is not published.
    config.corpus.update(fim=0.1, split_fused=0.1)
    return config
