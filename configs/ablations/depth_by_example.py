"""A loop that is told how long to think: rows of a cellular automaton, one iteration of the core for every step.

Command:   python -m launch.sweep --config=configs/ablations/depth_by_example.py --workdir=runs/depth_by_example
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Rows of 16 bits after one to nine steps; one layer before, one in the core, one after."""
    config = common.base()
    config.name = "depth_by_example"
    config.steps = 1500
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=40, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=1, core=1, coda=1, mean=5, draw="task", grad_steps=9)
    config.model.recurrent.update(injection="none", start="embedding")
    config.data.update(task="automaton", length=40, batch_size=64)
    config.data.options = ConfigDict(dict(width=16, max_steps=9))
    config.optimizer.update(lr=3e-3, warmup_steps=40, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=576, max_new_tokens=17, by="steps", depth="task")
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    config.micro_batch = 16
    return config
