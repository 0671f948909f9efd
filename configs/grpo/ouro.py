"""GRPO of a looped model, Ouro (2510.25741), with the numbers of the launcher that RLTT (2602.10520) is compared with.

    joint (every loop predicts, weighed by the gate) -> gate (the gate alone) -> grpo (the last loop's tokens)

All loops run while it samples and learns, and the log-probs are those of the last; the gate is left as it was. In the
miniature a model of one looped layer learns to write sums down and often leaves out the mark of its answer, which GRPO
then rewards.

Command:   python -m train --config=configs/grpo/ouro.py --workdir=runs/ouro
           python -m train --config=configs/grpo/ouro.py:hub --workdir=runs/ouro_hub \\
               --config.init_from=/models/Ouro-1.4B-Thinking --config.data.path=/data/math      (not measured)
Hardware:  two CPU cores; of the published model eight GPUs or a slice
Time:      a minute and a half of one core
Expect:    docs/results.md, "Loops that predict, and a gate"
Memory:    keys of every loop take 786 kB a token of the 1.4B, four times those of its 24 layers run once;
           `--config.model.recurrent.kv_slots=1` samples by the last loop's alone, from another distribution than the
           update's
Paper:     MATH, 7,500 problems for five epochs, 32 prompts x 8 samples of 2,048 tokens at temperature 1, one update
           each; AdamW at 1e-6 after a tenth of warm-up, weight decay .1, norm clipped at .1, KL (k3) .001; evaluated
           after 140 steps. RLTT over this: + 5.8 points (1.4B), + 10.9 (2.6B), the mean of four sets
"""

from ml_collections import ConfigDict

from configs import common
from configs.models import get_preset


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published model's sizes and hyper-parameters; `init_from` holds its weights."""
    return _hub() if common.parse_arg(arg, hub=False).hub else _small()


def _small() -> ConfigDict:
    config = common.base()
    config.name = "ouro"
    config.model.update(d_model=64, n_layers=1, n_heads=4, d_ff=192, max_length=48, init_std=0.1, norm="peri")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=0, core=1, coda=0, mean=4, injection="none", start="embedding")
    config.model.recurrent.update(readout="loop", exit_gate=True)
    config.data.update(task="addition", length=32, batch_size=64)
    config.data.options = ConfigDict(dict(digits=1, max_digits=2, direct_share=0.0, unmarked_share=0.4))
    config.optimizer.update(lr=4e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, max_new_tokens=28, depths=(1, 2, 3, 4), temperature=1.0)
    config.checkpoint.update(every=1000, keep_last=1, keep_best=0)
    config.stages = ("joint", "gate", "grpo")
    config.stage.joint = ConfigDict(dict(steps=200))
    alone = dict(model=dict(recurrent=dict(exit_stage="gate")), optimizer=dict(warmup_steps=0))
    config.stage.gate = ConfigDict(dict(steps=40) | alone)
    rl = dict(prompts=16, samples=8, max_new_tokens=28, beta=0.001)
    config.stage.grpo = ConfigDict(
        dict(algorithm="grpo", steps=30, optimizer=dict(lr=5e-4, warmup_steps=3, schedule="constant"), rl=rl)
    )
    return config


def _hub() -> ConfigDict:
    config = common.base()
    config.name = "ouro_grpo"
    config.algorithm = "grpo"
    config.steps = 1170  # five epochs of 7,500 problems
    config.model.update(get_preset("ouro_1_4b"))
    config.model.update(layers="scanned", remat="full", max_length=4096)
    config.data.update(task="math", path="data/math", template="chat", too_long="drop")
    config.optimizer.update(lr=1e-6, warmup_steps=117, schedule="constant", weight_decay=0.1, clip_norm=0.1)
    config.micro_batch = 32
    config.mesh.update(fsdp=8)
    config.rl.update(prompts=32, samples=8, max_new_tokens=2048, max_prompt_length=1024, slots=256, beta=0.001)
    config.eval.update(every=70, examples=500, max_new_tokens=2048, slots=256, at_start=True)
    config.checkpoint.every = 35
    return config
