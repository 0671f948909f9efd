"""What a run takes of a cluster: `config.launch`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.slices import Slice, slice_of
from settings.run import LaunchConfig
from settings.setting import from_mapping


@dataclass(frozen=True)
class Needs(LaunchConfig):
    """What one run takes: cores, GPUs and memory of each of its nodes, or a TPU slice; how long, and where."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no cluster can give."""
        super().__post_init__()
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
    return from_mapping(Needs, config["launch"])
