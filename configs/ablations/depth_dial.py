"""A dial that asks for depth: rows of a cellular automaton after one to six steps, none of which is written down.

All models have one layer before, one in the core and one after. "recurrent" is trained at 1 + Poisson(7) iterations of
the core; "stack", its twin, has the same layers without the injection (a map of 2 x width to width); "once" is the same
network trained and used at one iteration, the control; "deep" is a stack of ten layers, the depth of eight iterations
with three times the parameters.

Command:   python -m launch.sweep --config=configs/ablations/depth_dial.py --workdir=runs/depth_dial --parallel=2
           python -m launch.report runs/depth_dial --metrics=eval/accuracy,eval/accuracy_steps_2,eval/accuracy_steps_6
           python -m analysis.depth --accuracy runs/depth_dial/recurrent,seed=? --by=steps
Hardware:  two CPU cores
Expect:    accuracy .87 recurrent, .90 once, .87 stack, .59 deep (one of three seeds fails); by steps and iterations
           in docs/results.md: the twin is not beaten, and harder rows gain from more iterations
Paper:     2502.05171, figure 7: accuracy grows with the iterations at test, for harder tasks until more of them
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """Rows of twelve bits; the answer is all of the row after the steps."""
    config = common.base()
    config.name = "depth_dial"
    config.steps = 1500
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=32, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=1, core=1, coda=1, mean=8, draw="poisson", grad_steps=8)
    config.data.update(task="automaton", length=32, batch_size=64)
    config.data.options = ConfigDict(dict(width=12, max_steps=6))
    config.optimizer.update(lr=3e-3, warmup_steps=40, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=512, max_new_tokens=14, by="steps", depths=(1, 2, 4, 8, 16))
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The models compared, by name."""
    yield {"name": "recurrent"}
    yield {"name": "once", "model.recurrent.mean": 1, "model.recurrent.draw": "fixed"}
    yield {"name": "stack", "model.depth": "stack", "eval.depths": ()}
    yield {"name": "deep", "model.depth": "stack", "model.n_layers": 10, "eval.depths": ()}


def sweep() -> Iterator[dict[str, Any]]:
    """Four models, three seeds."""
    yield from over_seeds(settings())
