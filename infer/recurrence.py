"""How a recurrent model iterates while it samples: what is asked, and what of it a compiled program depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.draft import Draft
from infer.sampling import at_least
from model.block import RUNNING_STATE
from model.depth import Exit
from model.lm import Model
from settings.data import BY_GATE
from settings.run import WARM_STARTS
from settings.setting import unknown


@dataclass(frozen=True)
class Recurrence:
    """`depth`: iterations a token, one number or one for every sample (None: `recurrent.mean`), or "gate": each sample
    has as many as the exit gate says at its prompt's last token (infer/gate_depths.py): where the chance to have
    stopped has reached `gate_threshold` (None: `recurrent.exit_threshold`), or, with `gate_drawn`, drawn from it.

    `max_depth`: with one for every sample, the most that any may have (0: the largest; the program depends on it).
    `exit` ends those of a token early (model/exit.py). `warm_start` begins a token where the one before ended
    (continuous chain of thought, 2502.05171 section 6.3): "raw" or "normed". Hashable. Raises ValueError for values
    out of range.
    """

    depth: int | str | Sequence[int] | np.ndarray | None = None
    max_depth: int = 0
    exit: Exit | None = None
    warm_start: str = ""
    gate_threshold: float | None = None
    gate_drawn: bool = False

    def __post_init__(self) -> None:
        if self.warm_start not in WARM_STARTS:
            raise ValueError(unknown("warm_start", self.warm_start, WARM_STARTS))
        at_least("max_depth", self.max_depth, 0)
        self._check_gate()
        if self.depth is None or self.by_gate:
            return
        depths = np.asarray(self.depth)
        if not np.issubdtype(depths.dtype, np.integer) or depths.ndim > 1 or depths.min(initial=1) < 1:
            raise ValueError(f'depth must be an integer >= 1, one for each sample, or "gate"; found {self.depth}')
        if self.max_depth and (not depths.ndim or depths.max() > self.max_depth):
            raise ValueError(f"max_depth={self.max_depth} bounds depths that differ by sample; found {self.depth}")
        object.__setattr__(self, "depth", tuple(depths.tolist()) if depths.ndim else int(depths))

    def _check_gate(self) -> None:
        """Raises ValueError for what a choice by the gate does not go with, and for parts of it without one."""
        threshold, drawn = self.gate_threshold, self.gate_drawn
        if self.by_gate and (self.exit or self.max_depth):
            raise ValueError(
                f'depth="gate" chooses up to recurrent.mean iterations for all tokens of a sample: leave out exit='
                f"{self.exit}, max_depth={self.max_depth}"
            )
        if not self.by_gate and (drawn or threshold is not None):
            raise ValueError(
                f'gate_drawn={drawn} and gate_threshold={threshold} are of depth="gate", found depth={self.depth!r}'
            )
        if threshold is not None and (drawn or not 0 < threshold <= 1):
            raise ValueError(
                f"gate_threshold is a chance above 0, at most 1, and of depths that are not drawn; found {threshold},"
                f" gate_drawn={drawn}"
            )

    @property
    def by_gate(self) -> bool:
        """Whether the exit gate is to choose."""
        return isinstance(self.depth, str) and self.depth == BY_GATE

    def depths(self, mean: int) -> np.ndarray:
        """Iterations of all samples [], or of each [N]; `mean`: those of a model that was not asked for any."""
        assert not self.by_gate, "the gate has not been read: with_gate_depths"
        return np.asarray(mean if self.depth is None else self.depth, np.int32)


@dataclass(frozen=True)
class RecurrencePlan:
    """At most `depth` iterations a token (`varied`: as many as its sample has), fewer where `exit` ends them; `warm`:
    a token starts from the state of the one before, "raw" or "normed", or does not ("").
    """

    depth: int
    varied: bool = False
    exit: Exit | None = None
    warm: str = ""


def plan_recurrence(
    model: Model, samples: int, recurrence: Recurrence | None, draft: Draft | None = None
) -> RecurrencePlan | None:
    """What a compiled sampler depends on, None for a plain stack; ValueError for what the model or the draft cannot."""
    asked = recurrence or Recurrence()
    if model.config.depth != "recurrent":
        for name in ("depth", "max_depth", "exit", "warm_start"):
            if getattr(asked, name) != getattr(Recurrence, name):
                raise ValueError(f"{name}={getattr(asked, name)} requires a recurrent model; this one is a plain stack")
        return None
    if draft and (asked.exit or asked.warm_start):
        raise ValueError("draft checks several tokens at once: it does not go with exit or warm_start")
    running = sorted(set(model.config.per_layer("mixer")) & set(RUNNING_STATE))
    if asked.exit and running:
        raise ValueError(f"exit leaves out iterations that the running state of mixer {running[0]!r} needs")
    if asked.by_gate:
        return RecurrencePlan(model.config.recurrent.mean, True, warm=asked.warm_start)
    depths = asked.depths(model.config.recurrent.mean)
    if depths.ndim and len(depths) != samples:
        raise ValueError(f"depth has {len(depths)} entries for {samples} samples; give one number, or one for each")
    return RecurrencePlan(asked.max_depth or int(depths.max()), bool(depths.ndim), asked.exit, asked.warm_start)


def depths_by_sample(model: Model, plan: RecurrencePlan | None, recurrence: Recurrence | None) -> np.ndarray | None:
    """The iterations of each sample [N] where they vary, else None."""
    if plan is None or not plan.varied or recurrence is None:
        return None
    return recurrence.depths(model.config.recurrent.mean)
