"""Continuous thoughts on graphs: two thoughts in the place of two steps of reasoning, each fact in one position.

Which of two kinds someone belongs to, two facts away, in graphs whose shape gives nothing away. Stage 0 writes both
steps, stage 1 thinks the first, stage 2 both. The root is the question's last token and nothing stands around thoughts:
a thought is then to a thought what a written node is to the next.

Command:   python -m launch.sweep --config=configs/ablations/coconut_prosqa.py --workdir=runs/coconut_prosqa
           python -m launch.report runs/coconut_prosqa
Hardware:  two CPU cores
Expect:    thoughts as good as written steps (.93), all without thoughts or curriculum a guess (.5); docs/results.md
Paper:     2412.06769, table 1 (ProsQA): coconut 97.0 %, without thoughts 95.5 %, CoT 77.5 %, no CoT 76.7 %
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Two layers without positions; what is fed back is of the size of what is looked up (rms 1)."""
    config = common.base()
    config.name = "coconut_prosqa"
    config.algorithm = "coconut"
    config.steps = 1000
    config.model.update(d_model=64, n_layers=2, n_heads=4, d_ff=256, max_length=64, init_std=0.125, embed_scale=8.0)
    config.model.update(pairs=True, positions="none")
    config.data.update(task="prosqa", batch_size=64)
    config.data.options = ConfigDict(dict(style="packed", nodes=11, min_hops=2, max_hops=2, fair=True, kinds=10))
    config.thoughts.update(thoughts_per_step=1, max_stage=2, stage_steps=250, first_stage_steps=500)
    config.thoughts.update(markers=False, reset="never")
    config.optimizer.update(lr=2e-3, warmup_steps=50, b2=0.98)
    config.eval.update(examples=512, max_new_tokens=16, loss_batches=4)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The paper's methods, and more thoughts for each step."""
    methods = ("coconut", "cot", "no_cot", "no_thought", "pause", "pause_as_thought", "no_curriculum")
    yield from ({"name": method, "thoughts.method": method} for method in methods)
    yield from ({"name": f"coconut-c{c}", "thoughts.thoughts_per_step": c} for c in (2, 3))


def sweep() -> Iterator[dict[str, Any]]:
    """Nine ways, three seeds."""
    yield from over_seeds(settings())
