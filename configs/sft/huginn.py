"""SFT of Huginn (2502.05171) from its weights, with the objective it was pre-trained by: a depth drawn for each step.

    pretrained (the miniature's base) -> sft;  pretrained -> once (the control: one iteration in every step)

A stock trainer runs the core equally often in every step, and so teaches the weights what to do at that depth alone:
the control shows it. A low-rank adapter changes nothing in this, for it is read in every iteration like the weights
that it is added to: one of rank 8 in a stock trainer took Huginn's ARC-E from 68 to 30, as a user reports
(seal-rg/recurrent-pretraining, issue 22). So depths are drawn here, the last eight iterations carry gradient, each
rematerialised by itself, and accuracy is measured at several depths, before the first step and after the last.

Command:   python -m train --config=configs/sft/huginn.py --workdir=runs/huginn
           python -m launch.plan --config=configs/sft/huginn.py:hub --topology=v5p:2x4x4     (not run)
           python -m train --config=configs/sft/huginn.py:hub --workdir=runs/huginn_hub \\
               --config.init_from=/models/huginn-0125 --config.data.path=/data/gsm8k      (not measured)
Hardware:  two CPU cores; of the published model a slice
Time:      two minutes of one core
Expect:    docs/results.md, "SFT at drawn depths"
Memory:    of the published model 57 GB of weights, gradients and moments over all chips, and for backpropagation 84 kB
           a token for the states of eight iterations, at 32 iterations as at 8; in decoding keys of 2.7 MB a token at
           32 iterations (.34 MB with recurrent.kv_slots=4)
Paper:     r = 32 on average, 1 + Poisson of a lognormal rate, one draw for all rows; eight iterations with gradient;
           AdamW .9 / .95, 4e-5 without decay of the rate, weight decay 4e-5 but on norms and biases, norm clipped at 1.
           GSM8K of the base model: 34.8 (flexible 42.1) at r = 32; 0 at r = 1
"""

from ml_collections import ConfigDict

from configs import common
from configs.models import get_preset

DEPTHS = (1, 2, 4, 8, 16)


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published model's sizes and hyper-parameters; `init_from` holds its weights."""
    return _hub() if common.parse_arg(arg, hub=False).hub else _small()


def _small() -> ConfigDict:
    config = common.base()
    config.name = "huginn"
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=32, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=1, core=1, coda=1, mean=8, draw="lognormal", grad_steps=4)
    config.data.update(task="automaton", length=20, batch_size=64)
    config.optimizer.update(lr=3e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, max_new_tokens=9, depths=DEPTHS, by="steps")
    config.checkpoint.update(every=1000, keep_last=1, keep_best=0)
    config.stages = ("pretrained", "sft", "once")
    config.stage.pretrained = ConfigDict(dict(steps=250, data=dict(options=dict(width=8, max_steps=1))))
    deeper = dict(options=dict(width=8, max_steps=2))
    learnt = dict(steps=150, data=deeper, optimizer=dict(lr=2e-3), eval=dict(at_start=True), init_from="pretrained")
    config.stage.sft = ConfigDict(learnt)
    once = dict(mean=1, draw="poisson")  # 1 + Poisson(0)
    config.stage.once = ConfigDict(learnt | dict(model=dict(recurrent=once)))
    return config


def _hub() -> ConfigDict:
    config = common.base()
    config.name = "huginn_sft"
    config.algorithm = "sft"
    config.steps = 700  # three epochs of 32 rows
    config.model.update(get_preset("huginn_3_5b"))
    config.model.update(layers="scanned", remat="full")
    config.data.update(task="gsm8k", template="question", too_long="drop", batch_size=32, length=512)
    config.data.options = ConfigDict(dict(source="jsonl", keep_calculator=False))
    config.optimizer.update(lr=1e-5, warmup_steps=30, schedule="constant", weight_decay=4e-5, no_decay=("vector",))
    config.mesh.update(data=2, fsdp=16)
    config.eval.update(examples=1319, max_new_tokens=320, slots=64, depths=(1, 4, 8, 16, 32, 64), at_start=True)
    config.checkpoint.every = 100
    return config
