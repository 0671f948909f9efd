"""GRPO on GSM8K (2402.03300) with the exact-answer reward, from an SFT run or a published model.

From a published model (a GPU or TPU):
    python -m train --config=configs/grpo/gsm8k.py --workdir=runs/gsm8k_grpo \
        --config.init_from=/models/Qwen2.5-Math-1.5B --config.data.path=/data/gsm8k
After configs/sft/gsm8k.py:scratch, on two CPU cores (about 10 minutes; docs/results.md has what came out):
    python -m train --config=configs/grpo/gsm8k.py:scratch --workdir=runs/gsm8k_scratch_grpo \
        --config.init_from=runs/gsm8k_scratch --config.data.path=/data/gsm8k
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`scratch` is sized for two CPU cores; `init_from` must be given either way."""
    scratch = common.parse_arg(arg, scratch=False).scratch
    config = common.base()
    config.name = "gsm8k_grpo"
    config.algorithm = "grpo"
    config.data.update(task="gsm8k", template="question", too_long="drop")
    config.data.options = ConfigDict(dict(source="jsonl", keep_calculator=False))
    return _scratch(config) if scratch else _pretrained(config)


def _pretrained(config: ConfigDict) -> ConfigDict:
    config.steps = 200
    config.model.remat = "full"
    config.micro_batch = 8
    config.optimizer.update(lr=1e-6, warmup_steps=5)
    config.rl.update(prompts=32, samples=8, max_new_tokens=512, slots=256, beta=0.001)
    config.data.update(length=1024)
    config.eval.update(every=50, examples=1319, max_new_tokens=512, slots=256, at_start=True, loss_batches=8)
    config.checkpoint.every = 25
    return config


def _scratch(config: ConfigDict) -> ConfigDict:
    config.steps = 40
    config.micro_batch = 16
    config.optimizer.update(lr=1e-4, warmup_steps=5)
    config.rl.update(prompts=8, samples=8, max_new_tokens=160)
    config.data.update(batch_size=8, length=512, pack=True)
    config.eval.update(examples=1319, max_new_tokens=224, slots=256, loss_batches=16)
    config.checkpoint.every = 10
    return config
