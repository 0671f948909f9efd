"""A small model that imitates a mixture of scripted policies on the planted subsequence: where VB and VF both begin.

Answers of 64 tokens: a letter that names a style, then fillers, and sooner or later the block that the prompt asks for.
`--config=configs/sft/planted.py:base=low` takes another mixture (BASES in data/tasks/planted.py).

Command:   for base in point low high skewed; do
               python -m train --config=configs/sft/planted.py:base=$base --workdir=runs/verifier_free/$base
           done
Hardware:  one CPU core
Time:      to be measured
Expect:    to be measured
"""

from ml_collections import ConfigDict

from configs import common

HORIZON = 64


def get_config(arg: str | None = None) -> ConfigDict:
    """Two layers of width 64 on answers of the mixture `base`, right and wrong."""
    chosen = common.parse_arg(arg, base="high")
    config = common.base()
    config.name = f"planted_{chosen.base}"
    config.steps = 1000
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=192, max_length=HORIZON + 8, init_std=0.1)
    config.data.update(task="planted", length=HORIZON + 6, batch_size=32)
    config.data.options = ConfigDict(dict(base=chosen.base, horizon=HORIZON))
    config.optimizer.update(lr=3e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=500, max_new_tokens=HORIZON, temperature=1.0)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config
