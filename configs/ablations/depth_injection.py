"""How the core is shown its input, and where norms stand: injection by placement, on the dial of depth_dial.py.

Command:   python -m launch.sweep --config=configs/ablations/depth_injection.py --workdir=runs/depth_injection
           python -m launch.report runs/depth_injection --metrics=eval/accuracy,recurrent/change,recurrent/correlation
Hardware:  two CPU cores
Expect:    three seeds: no injection .10, any .60 to .81, post-norm .44; docs/results.md
Paper:     2502.05171, section 4.3 and figure 6: sandwich norms work; adding is as good as a map of both when small and
           worse at scale; without an injection training is unstable. Plain pre-norm learns, but ignores the state.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import depth_dial
from configs.ablations.small import over_seeds


def get_config() -> ConfigDict:
    """The recurrent model of depth_dial.py, with a thousand steps."""
    config = depth_dial.get_config()
    config.name = "depth_injection"
    config.steps = 1000
    return config


def settings() -> Iterator[dict[str, Any]]:
    """Injections under sandwich norms, then the other placements."""
    for injection in ("concat", "add", "gate", "diagonal"):
        yield {"name": injection, "model.recurrent.injection": injection}
    yield {"name": "none", "model.recurrent.injection": "none", "model.recurrent.start": "embedding"}
    for norm in ("pre", "post"):
        yield {"name": f"concat-{norm}", "model.norm": norm}


def sweep() -> Iterator[dict[str, Any]]:
    """Seven models, three seeds."""
    yield from over_seeds(settings())
