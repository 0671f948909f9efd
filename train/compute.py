"""What a run has spent since its start: FLOPs, counted by hand, and seconds of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.compute import equivalent_parameters, flops, parameters
from model.config import ModelConfig
from model.lm import Model
from model.reports import Work

FLOPS, SECONDS = "compute/flops", "time/compute"
CUMULATIVE = (FLOPS, SECONDS)  # metrics that count from the start of a run, where others are those of a step
SIZES = ("parameters", "equivalent_parameters")


class Meter:
    """Adds up what updates and the samples that they learn from cost; evaluations and frozen models are left out.

    FLOPs are those of model/compute.py, of every pass as often as it ran: the same for a run that was killed and
    resumed, and for every layout. Seconds are those in which a step was under way, times the devices; what a killed run
    did after its last checkpoint is in neither.
    """

    def __init__(self, model: Model, devices: int) -> None:
        """Nothing is spent."""
        self._model, self._devices = model, devices
        self._flops, self._seconds, self._ended = 0, 0.0, 0.0

    def add(self, metrics: Mapping[str, float], sampled: int, started: float, ended: float) -> None:
        """A step: the metrics of its update, the FLOPs of its samples, and when it began and ended (they overlap).

        Raises ValueError where the update does not tell what it has read.
        """
        if "compute/tokens" not in metrics:
            raise ValueError("the objective does not tell what it has read: end it with add_auxiliary_losses")
        work = Work(*(metrics.get(f"compute/{name}") for name in ("tokens", "iterations", "gradients")))
        self._flops += flops(self._model, work, trains=True) + sampled
        self._seconds += self._devices * (ended - max(started, self._ended))
        self._ended = ended

    def metrics(self) -> dict[str, float]:
        """What was spent until now."""
        return {FLOPS: float(self._flops), SECONDS: self._seconds}

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint."""
        return {"flops": self._flops, "seconds": self._seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._flops, self._seconds = int(state["flops"]), float(state["seconds"])


def sizes(config: ModelConfig) -> dict[str, float]:
    """How large a model is, for result.json and the tables made of it."""
    return dict(zip(SIZES, (sum(parameters(config)), round(equivalent_parameters(config))), strict=True))
