"""What a run takes of a cluster: `config.launch`, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.config import unknown

# Sides of a topology, chips of a host where a slice spans several, and the largest slice that lies on a single one.
# https://cloud.google.com/tpu/docs: the page of each generation.
GENERATIONS = {
    "v2": (2, 4, 4),
    "v3": (2, 4, 4),
    "v4": (3, 4, 4),
    "v5e": (2, 4, 8),
    "v5p": (3, 4, 4),
    "v6e": (2, 4, 8),
    "v7x": (3, 4, 4),
}


@dataclass(frozen=True)
class Slice:
    """A TPU slice: its generation, its topology such as 4x4, and how its chips lie on hosts."""

    generation: str
    topology: str
    hosts: int
    chips: int  # of a host


@dataclass(frozen=True)
class Needs:
    """What one run takes: cores, GPUs and memory of each of its nodes, or a TPU slice; how long, and where."""

    cpus: int = 1
    gpus: int = 0
    nodes: int = 1
    tpu: str = ""
    memory_gb: float = 0.0
    hours: float = 24.0
    partition: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for what no cluster can give."""
        for name, least in (("cpus", 1), ("gpus", 0), ("nodes", 1), ("memory_gb", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"launch.{name} must be at least {least}, found {getattr(self, name)}")
        if self.hours <= 0:
            raise ValueError(f"launch.hours must be more than 0, found {self.hours}")
        if self.tpu and (self.gpus or self.nodes > 1):
            raise ValueError(f"launch.tpu={self.tpu!r} names all chips and hosts; leave launch.gpus and launch.nodes")
        _ = self.slice

    @property
    def slice(self) -> Slice | None:
        """The TPU slice asked for; ValueError for one that does not exist."""
        return slice_of(self.tpu) if self.tpu else None

    @property
    def hosts(self) -> int:
        """How many machines train together, one process on each."""
        return self.slice.hosts if self.slice else self.nodes

    def __str__(self) -> str:
        """In words, for `--dry_run`."""
        amounts = {"core": self.cpus, "GPU": self.gpus, "TPU chip": self.slice.chips if self.slice else 0}
        each = [f"{amount} {what}{'s' if amount > 1 else ''}" for what, amount in amounts.items() if amount]
        each += [f"{self.memory_gb:g} GB"] if self.memory_gb else []
        place = f"a slice {self.tpu}" if self.tpu else f"partition {self.partition}" if self.partition else ""
        return ", ".join(filter(None, (f"{self.hosts} x ({', '.join(each)})", place, f"{self.hours:g} h")))


def slice_of(text: str) -> Slice:
    """Reads `v5e:4x4`, a generation and a topology."""
    generation, _, topology = text.partition(":")
    if generation not in GENERATIONS:
        raise ValueError(unknown("generation of launch.tpu", generation, GENERATIONS))
    (count, shared, whole), sides = GENERATIONS[generation], topology.split("x")
    if len(sides) != count or not all(side.isdecimal() and int(side) for side in sides):
        like = f"{generation}:{'x'.join('4' * count)}"
        raise ValueError(f"launch.tpu is a generation and a topology such as {like!r}, found {text!r}")
    chips = math.prod(map(int, sides))
    if chips <= whole:
        return Slice(generation, topology, 1, chips)
    if chips % shared:
        raise ValueError(f"{text} has {chips} chips, which do not fill hosts of {shared}")
    return Slice(generation, topology, chips // shared, shared)


def needs_of(config: Mapping[str, Any]) -> Needs:
    """The needs of a config of runs."""
    return Needs(**{**config["launch"], "options": dict(config["launch"]["options"])})
