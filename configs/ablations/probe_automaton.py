"""Models to be looked into: the recurrent core of depth_dial.py on shorter rows and fewer steps, in half the time.

Rows of ten bits after one to four steps of the automaton. `analysis.studies.iterations` asks after which iteration of
the core the row after k steps can be read from the model's states, when four steps are asked for.

Command:   python -m launch.sweep --config=configs/ablations/probe_automaton.py --workdir=runs/probe_automaton
           python -m analysis.studies.iterations runs/probe_automaton/seed=?
Hardware:  two CPU cores
Expect:    accuracy .98; what can be read rises to iteration 2 and stays; no iteration for each step (docs/results.md)
Paper:     2502.05171, section 7: states settle with the iterations; 2201.03529 for the probe
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import depth_dial
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """The "recurrent" model of depth_dial.py, trained for 900 steps."""
    config = depth_dial.get_config()
    config.name = "probe_automaton"
    config.steps = 900
    config.data.length = 24
    config.data.options = ConfigDict(dict(width=10, max_steps=4))
    config.eval.update(examples=256, max_new_tokens=12, depths=(1, 2, 4, 8))
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    yield from over_seeds([{}])
