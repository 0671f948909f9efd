"""A loop that is told how long to think, beside stacks: rows of a cellular automaton, one iteration for every step.

Trained on one to six steps, asked for one to twelve. All models are 64 wide.

    loop        one layer, run once for every step: it starts from the embedding, its final norm stands inside the loop
                and nothing comes before or after, so that what goes in can come out
    open        the same layer between two others that run once, the usual prelude and coda
    random      as "loop", at depths drawn at random in training (the number of steps must be read, and counted)
    permuted    as "loop", each row trained at the depth of another one: a control
    once        the layer of "loop" as a stack, with the number of steps in the prompt: its twin
    stack       three layers, as many as "open" has
    deep        six layers: the FLOPs of the loop at six steps, with six times the parameters

Command:   python -m launch.sweep --config=configs/ablations/depth_by_example.py --workdir=runs/depth_by_example
           python -m launch.report runs/depth_by_example \
               --metrics=eval/accuracy_steps_3,eval/accuracy_steps_6,eval/accuracy_steps_9,eval/accuracy_steps_12
           python -m analysis.difficulty "runs/depth_by_example/*=?" --trained=6
Hardware:  two CPU cores
Expect:    docs/results.md, "Told how long to think"
Paper:     2409.15647: loops told their length stay near-perfect at twice what they were trained on, stacks fail
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """The loop on rows of twelve bits; the number in the prompt is a random one, and only the depth tells the steps."""
    config = common.base()
    config.name = "depth_by_example"
    config.steps = 1200
    config.model.update(d_model=64, n_layers=1, n_heads=4, d_ff=192, max_length=36, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=0, core=1, coda=0, mean=4, draw="task", grad_steps=6)
    config.model.recurrent.update(injection="none", start="embedding", readout="loop")
    config.data.update(task="automaton", length=36, batch_size=64)
    config.data.options = ConfigDict(dict(width=12, max_steps=6, test_max_steps=12, show_steps=False))
    config.optimizer.update(lr=3e-3, warmup_steps=40, schedule="cosine", final_fraction=0.1)
    config.micro_batch = 8  # of like depth: rows come in its order
    config.eval.update(examples=768, max_new_tokens=13, by="steps", depth="task", slots=96)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The models compared, by name."""
    yield {"name": "loop"}
    shown = {"data.options.show_steps": True}
    ends = {"model.n_layers": 3, "model.recurrent.prelude": 1, "model.recurrent.coda": 1}
    yield {"name": "open", **ends, "model.recurrent.readout": "norm"}
    drawn = {"model.recurrent.draw": "poisson", "model.recurrent.per_sequence": True}
    yield {"name": "random", **drawn, **shown}
    yield {"name": "permuted", "data.depth_permuted": True}
    for name, layers in (("once", 1), ("stack", 3), ("deep", 6)):
        yield {"name": name, "model.depth": "stack", "model.n_layers": layers, "eval.depth": 0, **shown}


def sweep() -> Iterator[dict[str, Any]]:
    """Seven models, three seeds."""
    yield from over_seeds(settings())
