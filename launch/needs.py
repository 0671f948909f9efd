"""What a run takes of a cluster: `config.launch`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.slices import Slice, slice_of


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


def needs_of(config: Mapping[str, Any]) -> Needs:
    """The needs of a config of runs."""
    return Needs(**{**config["launch"], "options": dict(config["launch"]["options"])})
