"""What a reward model is worth as a reward: gold against proxy over the KL, few pairs or many, gated or summed.

    start -> opinions -> pairs -> few (a reward model of 32 pairs), many (of all)
    start -> by_few, by_many (RL by that reward model alone), by_rule (by the exact answer),
             summed, gated (by the rule and `few`)

Gold is the exact answer, which is measured and earns nothing in by_few and by_many. The KL is to `start`.

Command:   python -m launch.sweep --config=configs/ablations/over_optimisation.py --workdir=runs/over_optimisation
           python -m analysis.studies.proxy "runs/over_optimisation/*"
Hardware:  two CPU cores, three minutes a seed
Expect:    docs/results.md, "A reward model as a reward"
Paper:     2210.10760: the proxy goes on rising with the KL while gold turns down, the sooner the fewer comparisons the
           reward model has seen
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import SEEDS
from configs.pipelines.shared import CLEAN, rollouts, small, stage

FEW = 32


def get_config() -> ConfigDict:
    """One graph: two reward models and five runs of RL."""
    config = small("over_optimisation")
    config.data.options = ConfigDict(CLEAN)
    config.stages = ("start", "opinions", "some", "pairs", "few_pairs", "few", "many")
    config.stages += ("by_few", "by_many", "by_rule", "summed", "gated")
    config.stage.start = stage(algorithm="sft", steps=150)
    for name, examples in (("opinions", 1024), ("some", FEW)):
        asked = dict(least={}, n=8, examples=examples, chunk=512)
        config.stage[name] = stage(start="start", algorithm="sample", sample=asked)
    for name, source in (("pairs", "opinions"), ("few_pairs", "some")):
        config.stage[name] = stage(start="start", algorithm="pairs", data=dict(split=f"{source}/kept.jsonl"))
    for name, source in (("many", "pairs"), ("few", "few_pairs")):
        config.stage[name] = stage(
            start="start",
            algorithm="reward",
            steps=80,
            model=dict(score=dict(size=1)),
            data=dict(split=f"{source}/pairs.jsonl", batch_size=16, length=64),
            reward=dict(prompt_length=16),
            optimizer=dict(lr=1e-3),
            eval=dict(examples=0, loss_batches=8, split="pairs/pairs.jsonl"),
        )
    arms: dict[str, dict[str, Any]] = {
        "by_few": {"accuracy": 0.0, "model": {"path": "few"}},
        "by_many": {"accuracy": 0.0, "model": {"path": "many"}},
        "by_rule": {"accuracy": 1.0},
        "summed": {"accuracy": 1.0, "model": {"path": "few", "normalise": "batch"}},
        "gated": {"accuracy": 1.0, "model": {"path": "few", "normalise": "batch"}},
    }
    for name, rewards in arms.items():
        config.stage[name] = rollouts(120, rewards, init_from="start")
        config.stage[name].rl.update(track_kl=True, compose="gated" if name == "gated" else "sum")
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
