"""A trained stack made recurrent, and taught to use its iterations a few at a time (2511.07384).

The layers of `init_from` become prelude, core and coda; at first every depth computes what the stack did, and the mean
of the depths drawn in training rises from one to eight in the first half of the run. Prelude, core and coda must add up
to the stack's layers.

Command:   python -m train --config=configs/pipelines/retrofit.py:prelude=1,core=2,coda=1 --workdir=runs/retrofit \\
               --config.init_from=runs/<a stack> [--config.data.task=... --config.data.path=...]
Hardware:  that of training the stack, times the depth
Expect:    not measured on a published model; beside the stack trained on at equal FLOPs: configs/ablations/retrofit.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`prelude`, `core`, `coda`: layers of each; `steps` of the run."""
    asked = common.parse_arg(arg, prelude=1, core=2, coda=1, steps=600)
    config = common.base()
    config.name = "retrofit"
    config.algorithm = "sft"
    config.steps = asked.steps
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=asked.prelude, core=asked.core, coda=asked.coda, injection="concat")
    config.model.recurrent.update(start="zero", readout="none", draw="poisson", grad_steps=4)
    config.model.recurrent.update(mean=8, ramp=asked.steps // 2)
    config.data.update(length=96, batch_size=32, pack=True)
    config.optimizer.update(name="muon", lr=1e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(max_new_tokens=36, depths=(1, 4, 8))
    config.checkpoint.every = 1000
    return config
