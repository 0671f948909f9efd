"""SFT on GSM8K (2110.14168): 7,473 training rows, judged on the 1,319 test rows.

From a published model (a GPU or TPU; for a laptop any small folder in the Hub's layout will do):
    python -m train --config=configs/sft/gsm8k.py --workdir=runs/gsm8k_sft \
        --config.init_from=/models/Qwen2.5-Math-1.5B --config.data.path=/data/gsm8k
From scratch, at a size for two CPU cores (about 30 minutes; docs/results.md has what came out):
    python -m train --config=configs/sft/gsm8k.py:scratch --workdir=runs/gsm8k_scratch --config.data.path=/data/gsm8k

`data.path` is the folder with the original train.jsonl and test.jsonl; with `--config.data.options.source=tfds` it is
the directory that `data.tfds.prepare_gsm8k` prepared.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`scratch` trains a 2 M-parameter model with its own tokenizer; without it `init_from` must be given."""
    scratch = common.parse_arg(arg, scratch=False).scratch
    config = common.base()
    config.name = "gsm8k_sft"
    config.algorithm = "sft"
    config.data.update(task="gsm8k", template="question", too_long="drop")
    config.data.options = ConfigDict(dict(source="jsonl", keep_calculator=False))
    return _scratch(config) if scratch else _pretrained(config)


def _pretrained(config: ConfigDict) -> ConfigDict:
    config.steps = 700  # three epochs of 32 rows
    config.model.remat = "full"
    config.data.update(batch_size=32, length=512)
    config.micro_batch = 8
    config.optimizer.update(lr=1e-5, schedule="cosine", warmup_steps=30, final_fraction=0.1, weight_decay=0.01)
    config.eval.update(examples=1319, max_new_tokens=320, slots=256, loss_batches=8, at_start=True)
    config.checkpoint.every = 200
    return config


def _scratch(config: ConfigDict) -> ConfigDict:
    config.steps = 1000  # two and a half epochs
    config.model.update(d_model=192, n_layers=4, n_heads=6, d_ff=512, max_length=768, init_std=0.072)
    config.tokenizer.update(kind="sentencepiece", vocab_size=1024)
    config.data.update(batch_size=8, length=512, pack=True, loss_on="all")
    config.micro_batch = 2
    config.optimizer.update(lr=2e-3, schedule="cosine", warmup_steps=100, final_fraction=0.05, weight_decay=0.1)
    config.eval.update(examples=1319, max_new_tokens=224, slots=256, loss_batches=16, at_start=True)
    config.checkpoint.every = 300
    return config
