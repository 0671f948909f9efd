"""The smallest runs: one-digit addition with a model of 32 dimensions. `--config=tests/tiny_config.py:grpo`."""

from ml_collections import ConfigDict

from configs import common

SFT = dict(algorithm="sft", steps=6)
GRPO = dict(algorithm="grpo", steps=4)
# Two models of one, of which one learns from pairs that the first gave, the other from its samples.
PAIRS = {"data": dict(split="pairs/pairs.jsonl"), "steps": 3}
GRAPH = {
    "sft": SFT | {"steps": 40},
    "sample": {"algorithm": "sample"},
    "pairs": {"algorithm": "pairs", "data": "sample/kept.jsonl", "pairs": dict(most=2)},
    "reward": PAIRS
    | {
        "algorithm": "reward",
        "model": dict(score=dict(size=1)),
        "eval": dict(examples=0, loss_batches=1, split="pairs/pairs.jsonl"),
    },
    "dpo": PAIRS | {"algorithm": "preference", "from": "sft"},
    "rejected": SFT | {"from": "sft", "data": "sample/kept.jsonl", "steps": 3},
    "merged": {"algorithm": "merge", "from": "sft", "merge": dict(models=("dpo", "rejected"))},
    "hub": {"algorithm": "export", "from": "merged"},
}


def get_config(arg: str = "sft") -> ConfigDict:
    """The config of one run of `sft` or `grpo`, of the pipeline `stages` of both, or of a `graph` of stages."""
    config = common.base()
    config.name = f"tiny-{arg}"
    config.model.update(d_model=32, n_layers=1, n_heads=2, d_ff=48, max_length=64, init_std=0.1)
    config.data.update(task="addition", length=24, batch_size=8)
    config.data.options = ConfigDict(dict(digits=1, direct_share=1.0, train_size=64, test_size=8))
    config.optimizer.lr = 3e-3
    config.rl.update(prompts=2, samples=4, max_new_tokens=6)
    config.eval.update(examples=4, max_new_tokens=6)
    if arg == "stages":
        config.stages = ("sft", "grpo")
        config.stage.sft = ConfigDict(SFT | dict(steps=2))
        config.stage.grpo = ConfigDict(GRPO | dict(steps=2))
    elif arg == "graph":
        config.eval.examples, config.eval.loss_batches = 4, 0
        config.sample.update(n=4, max_new_tokens=6, chunk=8, examples=24)
        config.sample.least = ConfigDict()
        config.stages = ("sft", "sample", "pairs", "reward", "dpo", "rejected", "merged", "hub")
        config.stage = ConfigDict(GRAPH)
    else:
        config.update(dict(sft=SFT, grpo=GRPO)[arg])
    return config
