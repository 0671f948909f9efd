"""A trained stack made recurrent, and taught to use its iterations a few at a time (2511.07384).

The layers of `init_from` become prelude, core and coda; at first every depth computes what the stack did, and each
stage draws deeper passes than the one before. Prelude, core and coda must add up to the stack's layers.

Command:   python -m train --config=configs/pipelines/retrofit.py:prelude=1,core=2,coda=1 --workdir=runs/retrofit \\
               --config.init_from=runs/<a stack> [--config.data.task=... --config.data.path=...]
Hardware:  that of training the stack, times the depth
Expect:    not measured on a published model; tests/train/test_initial.py runs it on a tiny one
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`prelude`, `core`, `coda`: layers of each; `steps` of every stage."""
    asked = common.parse_arg(arg, prelude=1, core=2, coda=1, steps=200)
    config = common.base()
    config.name = "retrofit"
    config.algorithm = "sft"
    config.steps = asked.steps
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=asked.prelude, core=asked.core, coda=asked.coda, injection="concat")
    config.model.recurrent.update(start="zero", readout="none", draw="poisson", grad_steps=4)
    config.data.update(length=96, batch_size=32, pack=True)
    config.optimizer.update(name="muon", lr=1e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.max_new_tokens = 36
    config.checkpoint.every = 1000
    config.stages = ("r2", "r4", "r8")
    for name, mean in (("r2", 2), ("r4", 4), ("r8", 8)):
        config.stage[name] = ConfigDict(dict(model=dict(recurrent=dict(mean=mean)), eval=dict(depths=(1, mean))))
    return config
