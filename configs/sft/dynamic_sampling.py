"""A small model that mostly blurts out sums and sometimes works them out: a start for dynamic sampling.

Three demonstrations in ten write the columns of a sum of one to four digits, the others only the answer. Sampled at
temperature 1, the model does both in these proportions: eight answers to a sum of three or four digits are rarely all
right or all wrong, and sums of five and six digits, which it was never shown, are out of reach.

Command:   python -m train --config=configs/sft/dynamic_sampling.py --workdir=runs/dynamic_sampling/start
Hardware:  one CPU core
Time:      55 s
Expect:    57 % of sums right (sampled): .82, .81, .42 and .22 of those of one to four digits
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Two layers of width 64, 700 steps of 32 packed rows."""
    config = common.base()
    config.name = "dynamic_sampling_start"
    config.steps = 700
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=192, max_length=96, init_std=0.1)
    config.data.update(task="addition", length=96, batch_size=32, pack=True)
    config.data.options = ConfigDict(dict(digits=1, max_digits=4, direct_share=0.7))
    config.optimizer.update(lr=3e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=500, max_new_tokens=64, temperature=1.0, by="digits")
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config
