"""The settings `optimizer`."""

from __future__ import annotations

import dataclasses

from settings.setting import check, setting

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
KINDS = ("matrix", "embedding", "vector")  # of parameters


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients move the parameters: AdamW or Muon, its rate over the run, and what is averaged."""

    name: str = setting("adamw", "the update rule", choices=OPTIMIZERS)
    lr: float = setting(1e-3, "the peak learning rate", low=0)
    schedule: str = setting("constant", "the rate's shape after the warm-up", choices=SCHEDULES)
    warmup_steps: int = setting(0, "steps over which the rate rises linearly", low=0)
    decay_fraction: float = setting(0.2, "share of the run over which wsd decays", low=0, high=1)
    final_fraction: float = setting(0.0, "the last rate, as a share of the peak", low=0, high=1)
    b1: float = setting(0.9, "decay of AdamW's first moment", low=0, high=1)
    b2: float = setting(0.95, "decay of AdamW's second moment", low=0, high=1)
    eps: float = setting(1e-8, "added to the root of AdamW's second moment", low=0)
    weight_decay: float = setting(0.0, "decoupled weight decay, times the rate", low=0)
    no_decay: tuple[str, ...] = setting(("vector", "embedding"), "parameters without weight decay", choices=KINDS)
    clip_norm: float = setting(1.0, "the gradient's global norm is at most this; 0: not clipped", low=0)
    ema: float = setting(0.0, "decay of the averaged parameters; 0: none are kept", low=0, high=1)
    muon_beta: float = setting(0.95, "decay of Muon's momentum", low=0, high=1)
    muon_steps: int = setting(5, "Newton-Schulz iterations of Muon", low=1)
    muon_rms: float = setting(0.2, "root mean square of a Muon update, before the rate", above=0)
    tables: str = setting("rows", "of PEER's tables only touched rows are trained, or all", choices=("rows", "dense"))
    memory: str = setting("device", "where moments lie between updates", choices=("device", "host"))

    def __post_init__(self) -> None:
        check(self, "optimizer.")
