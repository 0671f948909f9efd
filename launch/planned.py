"""What is known of a program that was planned, as rows of a table and as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from launch.chips import GB
from launch.cost import Cost
from launch.roofline import Roofline, Traffic


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on a chip: arguments, outputs that are no arguments given back, temporaries, the program itself; `peak` is
    the most that is alive at one time, of which the compiler says whether it fits; `host` lies in the host's memory.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """One program, compiled or refused: `state` bytes a chip are given, `on_host` more lie in the host's memory;
    `beside` bytes are what the run keeps on the chip meanwhile, by name. `needs` and `refused` are the compiler's own
    words where it does not fit, `unread` why its text could not be read; `left_out`: what else the run computes.
    """

    name: str
    trains: bool
    tokens: int
    seconds: float
    peak_rss: int
    capacity: float | None
    model_flops: float
    state: int
    memory: Memory | None = None
    cost: Cost | None = None
    traffic: tuple[Traffic, ...] = ()
    roofline: Roofline | None = None
    mfu: float | None = None
    needs: float | None = None
    refused: str = ""
    unread: str = ""
    advice: tuple[str, ...] = ()
    on_host: int = 0
    beside: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Bytes a chip of all that is kept meanwhile."""
        return sum(self.beside.values())

    @property
    def fits(self) -> bool:
        """Whether the compiler took it, and the chip can hold it and what lies beside it."""
        within = self.capacity is None or self.memory is None or self.memory.peak + self.kept <= self.capacity
        return not self.refused and within


def rows_of(one: Planned) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of everything that is known of a program."""
    return [*_memory_rows(one), *_work_rows(one), *_traffic_rows(one), *_bound_rows(one), _compiler_row(one)]


def _memory_rows(one: Planned) -> list[tuple[str, str, str]]:
    capacity = f"of {gigabytes(one.capacity)}" if one.capacity else "capacity not in the table of chips"
    beside = [(f"beside it {name}", gigabytes(size), "kept meanwhile") for name, size in one.beside.items()]
    if one.memory is None:
        verdict = ("does not fit", f"needs {gigabytes(one.needs)}", capacity)
        host = [("on the host", gigabytes(one.on_host), "from their shapes")] if one.on_host else []
        return [verdict, ("arguments", gigabytes(one.state), "from their shapes"), *host, *beside]
    memory = one.memory
    rows = [
        (
            "arguments",
            gigabytes(memory.arguments),
            ("parameters, batch" if one.on_host else "parameters, optimiser, batch")
            if one.trains
            else "parameters, cache",
        ),
        ("outputs", gigabytes(memory.outputs), "besides what is given back in place"),
        ("temporaries", gigabytes(memory.temporaries), ""),
        ("program", gigabytes(memory.code), ""),
    ]
    rows += [("on the host", gigabytes(max(memory.host, one.on_host)), "")] if memory.host or one.on_host else []
    most = gigabytes(memory.peak + one.kept)
    return [*rows, *beside, ("fits" if one.fits else "does not fit", most, f"at the most, {capacity}")]


def _work_rows(one: Planned) -> list[tuple[str, str, str]]:
    if one.cost is None:
        unread = [("costs", "not read", one.unread)] if one.unread else []
        return [(*_formula(one), ""), *unread]
    name, figure = _formula(one)
    share = f"{one.model_flops / one.cost.flops:.0%} of these products" if one.cost.flops else ""
    loops = f"{one.cost.unknown} loops taken as often as the config says" if one.cost.unknown else ""
    return [
        ("products", f"{one.cost.flops / 1e12:.4g} TFLOP", loops),
        (name, figure, share),
        ("memory traffic", gigabytes(one.cost.bytes), ""),
    ]


def _formula(one: Planned) -> tuple[str, str]:
    return ("6ND" if one.trains else "2ND"), f"{one.model_flops / 1e12:.4g} TFLOP"


def _traffic_rows(one: Planned) -> list[tuple[str, str, str]]:
    return [
        (
            f"{line.kind} over {line.axes}",
            gigabytes(line.bytes),
            f"{line.count:.0f} times" + ("" if line.seconds is None else f", {milliseconds(line.seconds)}"),
        )
        for line in one.traffic
    ]


def _bound_rows(one: Planned) -> list[tuple[str, str, str]]:
    if one.roofline is None or one.roofline.seconds is None:
        return []
    times = dataclasses.asdict(one.roofline)
    rows = [(f"time of {name}", milliseconds(value), "") for name, value in times.items()]
    allowed = f"{one.mfu:.1%}" if one.mfu is not None else ""
    speed = f"{one.tokens / one.roofline.seconds:,.0f} tokens a second of the whole pod at best"
    return [*rows, ("bound by", one.roofline.bound, speed), ("MFU allowed", allowed, "")]


def _compiler_row(one: Planned) -> tuple[str, str, str]:
    return "compiled in", f"{one.seconds:.0f} s", f"{gigabytes(one.peak_rss)} of memory on this machine"


def gigabytes(size: float | None) -> str:
    """10^9 bytes, as figures of memory are compared."""
    return "?" if size is None else f"{size / GB:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def milliseconds(seconds: float) -> str:
    """With three digits."""
    return f"{seconds * 1e3:,.3g} ms"


def as_dict(found: Sequence[Planned], config: ConfigDict, topology: str) -> dict[str, Any]:
    """The same figures, as JSON has them, for programs to read."""
    programs = []
    for one in found:
        fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name != "cost"}
        fields |= {"memory": one.memory and dataclasses.asdict(one.memory)}
        fields |= {"traffic": [dataclasses.asdict(line) for line in one.traffic]}
        fields |= {"roofline": one.roofline and dataclasses.asdict(one.roofline), "fits": one.fits}
        spent = one.cost and {"flops": one.cost.flops, "bytes": one.cost.bytes, "unknown_loops": one.cost.unknown}
        programs.append(fields | {"cost": spent})
    return {"name": config.name, "topology": topology, "programs": programs}
