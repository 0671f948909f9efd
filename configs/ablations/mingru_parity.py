"""What minGRU cannot do at any depth: parity needs a state that changes its sign, and gates in (0, 1) keep signs.

Trained on strings of 1 to 40 bits, asked about 40 to 256; chance is 50 %. A test that the recurrence really is what the
paper (2410.01201) says: an implementation that solves this is another one.

Command:   python -m launch.sweep --config=configs/ablations/mingru_parity.py --workdir=runs/mingru_parity
Hardware:  two CPU cores
Expect:    49 to 50 % at every depth (docs/results.md)
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import mingru_layers
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """The model and optimiser of `mingru_layers` on parity."""
    config = mingru_layers.get_config()
    config.name = "mingru_parity"
    config.model.max_length = 264
    config.data.update(task="parity", length=43)
    config.data.options = ConfigDict(dict(max_length=40, test_min_length=40, test_max_length=256))
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """1, 2 and 3 layers, three seeds each."""
    yield from over_seeds({"model.n_layers": layers} for layers in (1, 2, 3))
