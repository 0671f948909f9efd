"""How fast a program can be at best: the longest of its products, its memory traffic and its messages."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from launch.chips import Chip
from launch.cost import Cost, Message


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One kind of message along one axis (or several): how often, bytes a chip receives, and seconds at full speed."""

    kind: str
    axes: str
    count: float
    bytes: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of products, of memory and of messages if nothing else ran; None on a chip that is not in the table."""

    compute: float | None
    memory: float | None
    interconnect: float | None

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return max(times, key=lambda name: times[name]) if times else ""

    @property
    def seconds(self) -> float | None:
        """The least that a step takes: all three at once, none waiting for another."""
        return None if not self.bound else getattr(self, self.bound)


def roofline(cost: Cost, traffic: Sequence[Traffic], chip: Chip | None) -> Roofline:
    """The bounds of a program; messages along different axes are taken one after another."""
    if chip is None:
        return Roofline(None, None, None)
    sent = sum(line.seconds or 0.0 for line in traffic)
    return Roofline(cost.flops / chip.flops, cost.bytes / chip.bandwidth, sent)


def traffic_of(cost: Cost, mesh: jax.sharding.Mesh, chip: Chip | None) -> list[Traffic]:
    """Messages by kind and mesh axes, the largest first."""
    found: dict[tuple[str, str], Traffic] = {}
    for message, (count, size) in cost.messages.items():
        key = (message.kind, axes_of(message.group, mesh))
        seconds = None if chip is None else seconds_of(message, size, mesh, chip)
        before = found.get(key, Traffic(*key, 0, 0, None if chip is None else 0.0))
        both = None if seconds is None or before.seconds is None else before.seconds + seconds
        found[key] = Traffic(*key, before.count + count, before.bytes + size, both)
    return sorted(found.values(), key=lambda line: -line.bytes)


def axes_of(group: Sequence[int], mesh: jax.sharding.Mesh) -> str:
    """The mesh axes along which the devices of a group differ, "fsdp" or "data+fsdp"; "part of ..." where not all of
    these axes' devices are in it (a permutation's pair stands for its axes).
    """
    places = np.array(np.unravel_index(np.asarray(group), mesh.devices.shape))
    differ = [axis for axis, row in enumerate(places) if len(set(row.tolist())) > 1]
    names = "+".join(str(mesh.axis_names[axis]) for axis in differ)
    whole = math.prod(mesh.devices.shape[axis] for axis in differ)
    return names if len(group) in (2, whole) else f"part of {names}"


def seconds_of(message: Message, size: float, mesh: jax.sharding.Mesh, chip: Chip) -> float:
    """The time of messages by which each chip receives `size` bytes, over the links that its group can use.

    On a torus every side that a group spans brings a ring (two links) or, where it does not close, a line (one). An
    all-to-all crosses a ring's middle: s devices send each other what takes s / 4 times as long as a gather of the
    like share (Austin et al., How to Scale Your Model, 2025, "All-to-all").
    """
    sides = sides_of(message.group, mesh, chip)
    width = sum(speed for _, speed in sides) or chip.link
    if message.kind in ("all-to-all", "ragged-all-to-all") and sides and chip.torus:
        n = len(message.group)
        return size * n / (n - 1) * float(np.mean([length / (4 * speed) for length, speed in sides]))
    return size / width


def sides_of(group: Sequence[int], mesh: jax.sharding.Mesh, chip: Chip) -> list[tuple[int, float]]:
    """(devices, bytes a second into each) for every side of the torus along which a group's devices differ."""
    if not chip.torus:
        return [(len(group), chip.link)]
    grid = np.array([coordinates(device) for device in mesh.devices.flat])
    sizes, mine = grid.max(0) + 1, grid[np.asarray(group)]
    links = []
    for side, size in enumerate(sizes.tolist()):
        places = sorted(set(mine[:, side].tolist()))
        if len(places) < 2:
            continue
        step = min(b - a for a, b in itertools.pairwise(places))
        ring = size % chip.wraps == 0 and (len(places) * step == size or len(group) == 2)
        links.append((len(places), chip.link * (2 if ring else 1) / (step if len(group) > 2 else 1)))
    return links


def coordinates(device: Any) -> tuple[int, ...]:
    """Where a chip stands in its slice."""
    return tuple(device.coords)
