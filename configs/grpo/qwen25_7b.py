"""GRPO of Qwen2.5-7B on 64 v5e chips: 128 prompts x 8 samples of up to 2,048 tokens a rollout, on GSM8K.

Does it fit, and train it:
    python -m launch.plan --config=configs/grpo/qwen25_7b.py --topology=v5e:8x8
    python -m train --config=configs/grpo/qwen25_7b.py --workdir=runs/qwen25_7b \
        --config.init_from=/models/Qwen2.5-7B --config.data.path=/data/gsm8k

The model's sizes stand in the recipe, so that it can be planned where the weights are not; they are those of
`init_from`, which gives the weights and the tokenizer.
"""

from ml_collections import ConfigDict

from configs import common
from configs.models import get_preset


def get_config() -> ConfigDict:
    """The one variant there is."""
    config = common.base()
    config.name = "qwen25_7b_grpo"
    config.algorithm = "grpo"
    config.steps = 200
    config.model.update(get_preset("qwen2_5_7b"))
    config.model.update(layers="scanned", remat="full")
    config.data.update(task="gsm8k", template="question", too_long="drop")
    config.data.options = ConfigDict(dict(source="jsonl", keep_calculator=False))
    config.micro_batch = 64
    config.optimizer.update(lr=1e-6, warmup_steps=5)
    config.mesh.update(fsdp=16, tensor=4)
    # Passes over a cache take layers one by one: shared prompts would make eight programs of 28 layers of a loop's.
    config.rl.share_prompts = False
    config.rl.update(prompts=128, samples=8, max_new_tokens=2048, max_prompt_length=512, slots=512, beta=0.001)
    config.eval.update(every=50, examples=1319, max_new_tokens=2048, slots=512)
    config.checkpoint.every = 25
    return config
