"""DeepSeek-R1 (2501.12948): cold start, reinforcement learning with language consistency, rejection sampling, SFT of
the base on what is kept, and a last reinforcement learning by rules and a reward model.

    pretrained -> cold -> reasoning -> rejected;  pretrained + what was kept -> sft -> opinions -> pairs -> reward
    sft + the reward model -> final

The reward model learns from right and wrong answers of the model after SFT; in the paper from preferences between
answers to general questions.

Command:   python -m train --config=configs/pipelines/r1.py --workdir=runs/r1
           python -m train --config=configs/pipelines/r1.py --workdir=runs/r1 --dry_run        (the graph)
           python -m launch.pipeline --config=configs/pipelines/r1.py --workdir=runs/r1 --parallel=2
           python -m train --config=configs/pipelines/r1.py:hub --workdir=runs/r1_hub \
               --config.init_from=/models/Qwen2.5-7B --config.data.path=/data/math     (not measured: docs/pods.md)
Hardware:  two CPU cores; of a published model a slice (docs/pods.md)
Time:      four minutes
Expect:    docs/results.md, "R1 in miniature"
Paper:     section 2.3: thousands of cold-start examples; 600 k reasoning and 200 k other samples for two epochs of SFT;
           the last RL at T = .7, preference rewards only in its last 400 steps
"""

from ml_collections import ConfigDict

from configs import common
from configs.pipelines.shared import CLEAN, FORM, IN_DIGITS, hub, pretrained, r1_rollouts, rollouts, small, stage

KEPT = "rejected/kept.jsonl"


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published hyper-parameters on a model in the Hub's layout."""
    return _hub() if common.parse_arg(arg, hub=False).hub else _small()


def _small() -> ConfigDict:
    config = small("r1")
    rules = {"accuracy": 1.0, "format": FORM, "script": {"weight": 0.5, **IN_DIGITS}}
    config.stages = ("pretrained", "cold", "reasoning", "rejected", "sft", "opinions", "pairs", "reward", "final")
    config.stage.pretrained = pretrained()
    cold = dict(options=dict(CLEAN, train_size=200))
    config.stage.cold = stage(algorithm="sft", steps=15, data=cold, optimizer=dict(lr=1e-3))
    config.stage.reasoning = rollouts(70, rules)
    kept = {"accuracy": 1.0, "script": {"least": 1.0, **IN_DIGITS}}
    config.stage.rejected = stage(algorithm="sample", sample=dict(least=kept, keep="shortest", most=2, examples=1024))
    config.stage.sft = stage(
        start="pretrained", algorithm="sft", steps=100, data=dict(split=KEPT), optimizer=dict(lr=1e-3)
    )
    config.stage.opinions = stage(algorithm="sample", sample=dict(least={}, n=8, examples=512))
    config.stage.pairs = stage(algorithm="pairs", data=dict(split="opinions/kept.jsonl"), pairs=dict(held_out=0.2))
    scored = dict(examples=0, loss_batches=2, split="pairs/held_out.jsonl")
    config.stage.reward = stage(
        algorithm="reward",
        steps=60,
        start="sft",
        model=dict(score=dict(size=1)),
        data=dict(split="pairs/pairs.jsonl", batch_size=16, length=64),
        reward=dict(prompt_length=16),
        optimizer=dict(lr=1e-3),
        eval=scored,
    )
    opinion = {"weight": 0.2, "path": "reward", "normalise": "batch"}
    config.stage.final = rollouts(30, {**rules, "model": opinion}, init_from="sft")
    return config


def _hub() -> ConfigDict:
    config = hub("r1")
    english = {"weight": 1.0, "kind": "language", "target": "en"}
    config.stages = ("cold", "reasoning", "rejected", "sft", "opinions", "pairs", "reward", "final")
    config.stage.cold = stage(algorithm="sft", steps=200, data=dict(split="cold_start"))
    rules = {"accuracy": 1.0, "format": {"weight": 1.0}, "language": english}
    config.stage.reasoning = r1_rollouts(4000, rules, data=dict(template="r1"))
    kept = {"accuracy": 1.0, "language": {"least": 0.95, "target": "en"}}
    config.stage.rejected = stage(algorithm="sample", sample=dict(least=kept, n=16, most=4, code=False, paragraph=400))
    config.stage.sft = stage(start="base", algorithm="sft", steps=2000, data=dict(split=KEPT))
    config.stage.opinions = stage(algorithm="sample", sample=dict(least={}, n=8))
    config.stage.pairs = stage(algorithm="pairs", data=dict(split="opinions/kept.jsonl"), pairs=dict(held_out=0.05))
    config.stage.reward = stage(
        algorithm="reward",
        start="sft",
        steps=500,
        model=dict(score=dict(size=1)),
        data=dict(split="pairs/pairs.jsonl", batch_size=64),
        eval=dict(examples=0, loss_batches=8, split="pairs/held_out.jsonl"),
    )
    opinion = {"weight": 1.0, "path": "reward", "normalise": "batch"}
    config.stage.final = r1_rollouts(1700, {**rules, "model": opinion}, 0.7, init_from="sft")
    return config
