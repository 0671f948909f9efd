"""One-shot RLVR (2504.20571): GRPO on one problem, which is every group of the batch.

The paper's recipe, from Qwen2.5-Math-1.5B on the published rows (github.com/ypwang61/One-Shot-RLVR as JSON lines, a
file per split). The loss is policy gradient, KL and entropy, each with a coefficient: `rl.policy_coef`, `rl.beta`,
`rl.entropy_coef`. The 128 copies in a batch are 128 groups of 8, never one of 1,024.
    python -m train --config=configs/grpo/one_shot.py --workdir=runs/one_shot \
        --config.init_from=/models/Qwen2.5-Math-1.5B --config.data.path=/data/one_shot_rlvr
From the beginning, three commands, the first and the last with these two flags: train on the pool of 1,209 problems,
rank them by the variance of their accuracy, train on the first:
    python -m train --config=configs/grpo/one_shot.py --workdir=runs/pool --config.data.split=dsr_sub --config.steps=500
    python -m rl.select runs/pool --ranks=1 --out=runs/first.jsonl
    python -m train --config=configs/grpo/one_shot.py --workdir=runs/one_shot --config.data.split=runs/first.jsonl
`scratch` has the same loss on sums, after configs/sft/one_shot.py, for one CPU core; configs/ablations/one_shot.py
compares its arms.

Hardware:  8 GPUs of 80 GB in the paper; these sizes were not run here
Paper:     MATH500 36.0 % -> 73.6 % with one problem, 73.6 % with 1,209, 65.0 % with a reward for the format alone
Differs:   answers are judged by math-verify (there: mathd or sympy on the last box), and the loss averages over the
           tokens of the whole batch (there: over those of each micro-batch)
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe, or `scratch`: sums for one CPU core; `init_from` must be given either way."""
    scratch = common.parse_arg(arg, scratch=False).scratch
    config = common.base()
    config.name = "one_shot"
    config.algorithm = "grpo"
    config.rl.update(clip_low=0.2, clip_high=0.2, aggregate="token_mean", ddof=1, epsilon=1e-6)
    config.rl.update(policy_coef=1.0, beta=0.001, kl_kind="k3", entropy_coef=0.001)
    config.optimizer.b2 = 0.999
    return _scratch(config) if scratch else _pretrained(config)


def _pretrained(config: ConfigDict) -> ConfigDict:
    config.steps = 2000
    config.model.update(remat="full", max_length=4096)
    config.micro_batch = 8
    config.optimizer.update(lr=1e-6, weight_decay=0.01)
    config.data.update(task="math", split="pi1_r128", template="chat", too_long="drop")
    config.rl.update(prompts=128, samples=8, temperature=0.6, max_new_tokens=3072, max_prompt_length=1024, slots=256)
    config.eval.update(split="math500", every=20, examples=500, max_new_tokens=3072, slots=256, at_start=True)
    config.checkpoint.every = 20
    return config


def _scratch(config: ConfigDict) -> ConfigDict:
    config.steps = 100
    config.optimizer.update(lr=5e-5, warmup_steps=5)
    config.data.task = "addition"
    # 200 prompts; sums of five and six digits are beyond what the model was shown.
    config.data.options = ConfigDict(dict(digits=2, max_digits=6, direct_share=0.0, train_size=200))
    # Whether an answer stands behind </think>: measured always, learnt from where it is given a weight.
    config.rl.rewards.marked = ConfigDict(dict(kind="format", weight=0.0, answer_open="", answer_close=""))
    config.rl.update(prompts=16, samples=8, max_new_tokens=64)
    config.eval.update(examples=500, max_new_tokens=64, temperature=1.0, by="digits", every=20, at_start=True)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config
