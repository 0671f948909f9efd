"""A small model that can add but often leaves out the mark of its answer: where the miniature of one-shot RLVR begins.

Every demonstration writes the columns of a sum of two to four digits; two in five then leave out `</think>`, behind
which the verifier looks for the answer. Sampled at temperature 1, the model does both in these proportions.

Command:   python -m train --config=configs/sft/one_shot.py --workdir=runs/one_shot/start
Hardware:  one CPU core
Time:      40 s
Expect:    58 % of sums right, 63 % of answers readable (sampled)
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Two layers of width 64, 700 steps of 32 packed rows."""
    config = common.base()
    config.name = "one_shot_start"
    config.steps = 700
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=192, max_length=96, init_std=0.1)
    config.data.update(task="addition", length=96, batch_size=32, pack=True)
    config.data.options = ConfigDict(dict(digits=2, max_digits=4, direct_share=0.0, unmarked_share=0.4))
    config.optimizer.update(lr=3e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=500, max_new_tokens=64, temperature=1.0, by="digits")
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config
