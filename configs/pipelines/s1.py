"""s1 (2501.19393): SFT on a thousand traces, then budget forcing decides how long the model thinks.

    pretrained -> s1 (evaluated with one "Wait")

The traces of a published model are chosen by `python -m data.select s1` (docs/selection.md); in the miniature they are
sums of digits that are gone over again (data/tasks/running_sums.py).

Command:   python -m train --config=configs/pipelines/s1.py --workdir=runs/s1
           python -m infer --run=runs/s1 --task=own --strategy=budget --waits=1 \
               --wait=W --delimiters=task --temperature=1
           python -m train --config=configs/pipelines/s1.py:hub --workdir=runs/s1_hub \
               --config.init_from=/models/Qwen2.5-32B-Instruct --config.data.path=/data/math   (not measured)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      two minutes
Expect:    docs/results.md, "Recipes"
Paper:     1,000 traces, 5 epochs at 1e-5 in batches of 16, AdamW (.9, .95), weight decay 1e-4, warm-up .05: AIME 2024
           50.0 without budget forcing, 56.7 with it
"""

from ml_collections import ConfigDict

from configs import common
from configs.pipelines.shared import hub, stage


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published hyper-parameters on a model in the Hub's layout."""
    return _hub() if common.parse_arg(arg, hub=False).hub else _small()


def _small() -> ConfigDict:
    config = common.base()
    config.name = "s1"
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=256, init_std=0.1)
    config.data.update(task="running_sums", length=136, batch_size=48)
    config.optimizer.update(lr=5e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, temperature=1.0, max_new_tokens=128)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    config.stages = ("pretrained", "s1")
    once = dict(options=dict(passes=1))
    config.stage.pretrained = stage(algorithm="sft", steps=150, data=once)
    again = dict(options=dict(train_size=1000, again=0.5), batch_size=16)
    waiting = dict(strategy="budget", strategy_options=dict(waits=1, wait="W", delimiters="task"))
    config.stage.s1 = stage(algorithm="sft", steps=315, data=again, optimizer=dict(lr=1e-3), eval=waiting)
    return config


def _hub() -> ConfigDict:
    config = hub("s1")
    config.stages = ("s1",)
    adam = dict(lr=1e-5, b2=0.95, weight_decay=1e-4, warmup_steps=16, schedule="cosine")
    chosen = dict(split="s1k", batch_size=16)
    waiting = dict(strategy="budget", strategy_options=dict(waits=2))
    config.stage.s1 = stage(algorithm="sft", steps=315, data=chosen, optimizer=adam, eval=waiting)
    return config
