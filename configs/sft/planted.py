"""A small model that imitates a mixture of scripted policies on the planted subsequence: where VB and VF both begin.

Answers of 64 tokens: a letter that names a style, then fillers, and sooner or later the block that the prompt asks for.
`:start` learns the block on short correct answers; `:base=high` goes on from there with any mixture (BASES in
data/tasks/planted.py).

Command:   python -m train --config=configs/sft/planted.py:start --workdir=runs/verifier_free/start
           for base in point low high skewed; do
               python -m train --config=configs/sft/planted.py:base=$base --workdir=runs/verifier_free/$base
           done
Hardware:  one CPU core
Expect:    a minute each; what is learnt from them is in docs/results.md
"""

from ml_collections import ConfigDict

from configs import common

HORIZON, SHORT = 64, 10


def get_config(arg: str | None = None) -> ConfigDict:
    """Two layers of width 64 on answers of the mixture `base`, right and wrong; or where these begin (`start`)."""
    chosen = common.parse_arg(arg, base="high", start=False)
    config = common.base()
    config.name = "planted_start" if chosen.start else f"planted_{chosen.base}"
    config.steps = 1000
    config.model.update(d_model=64, n_layers=2, n_heads=2, d_ff=192, max_length=HORIZON + 8, init_std=0.05)
    config.data.task = "planted"
    config.optimizer.update(warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=500, temperature=1.0)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return _short(config) if chosen.start else _whole(config, chosen.base)


def _short(config: ConfigDict) -> ConfigDict:
    config.data.update(length=SHORT + 6, batch_size=128)
    config.data.options = ConfigDict(dict(base="low", horizon=SHORT, correct=True))
    config.optimizer.lr = 3e-3
    config.eval.max_new_tokens = SHORT
    return config


def _whole(config: ConfigDict, base: str) -> ConfigDict:
    config.init_from = "runs/verifier_free/start"
    config.data.update(length=HORIZON + 6, batch_size=32)
    config.data.options = ConfigDict(dict(base=base, horizon=HORIZON))
    config.optimizer.lr = 1e-3
    config.eval.max_new_tokens = HORIZON
    return config
