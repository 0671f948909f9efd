"""A small model that makes 12 from three cards: where the miniature of "SFT Memorizes, RL Generalizes" begins.

By default every prompt says that a face card counts 10, so that nothing has to be read. With `both`, half of the
prompts say 11, 12 and 13: this model knows both rules, as a large pretrained one does. Both stop before they are sure.

Command:   python -m train --config=configs/sft/general_points.py --workdir=runs/general_points/one
           python -m train --config=configs/sft/general_points.py:both --workdir=runs/general_points/both
Hardware:  one CPU core
Time:      20 s and 25 s
Expect:    60 % and 61 % of samples right on the values that were trained on, 0 and 32 % under the other rule
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Two layers of width 64; 75 steps of 128 demonstrations for one rule, 120 for `both`."""
    both = common.parse_arg(arg, both=False).both
    config = common.base()
    config.name = "general_points_start"
    config.steps = 120 if both else 75
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=192, max_length=64, init_std=0.1)
    config.data.update(task="general_points", length=48, batch_size=128)
    config.data.options = ConfigDict(dict(cards=3, target_value=12, rules="both" if both else "ten"))
    config.optimizer.update(lr=4e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(split="all", by="split", examples=800, max_new_tokens=32, temperature=1.0)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config
