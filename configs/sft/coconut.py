"""Continuous thoughts in miniature: partial products are replaced, step by step, by states that are fed back.

Coconut (2412.06769) on 2-digit products with the digits reversed. Stage 0 writes both partial products; each later
stage has two thoughts more and one partial product less, until thoughts alone come before the answer. How accuracy
depends on the number of thoughts at test: `python -m infer --run=... --task=own --thoughts=k`.

Command:   python -m train --config=configs/sft/coconut.py --workdir=runs/coconut
Hardware:  two CPU cores
Time:      130 s, beside other work
Expect:    over the stages 44 % (step 400), 34 % (800), 7.0 % (1400, 9 tokens), against 95 % (18 tokens) with
           thoughts.method=cot and 4.7 % with no_cot: one seed, 256 products, and far too few steps for thoughts to pay
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The recipe; `--config.thoughts.method=no_cot` (cot, pause, ...) is a baseline, with the same steps."""
    config = common.base()
    config.name = "coconut"
    config.algorithm = "coconut"
    config.steps = 1400
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=256, max_length=96, init_std=0.1)
    config.data.update(task="multiplication", batch_size=64)
    config.data.options = ConfigDict(dict(digits=2, style="compact"))
    config.thoughts.update(thoughts_per_step=2, max_stage=2, stage_steps=300, first_stage_steps=500)
    config.optimizer.update(lr=4e-3, warmup_steps=50, b2=0.98)
    config.eval.update(examples=256, max_new_tokens=20, every=200, loss_batches=4)
    config.checkpoint.every = 500
    return config
