"""Compiles a run's programs for a pod that is not here, and says whether they fit and what bounds them:

    python -m launch.plan --config=configs/pretrain/llama31_8b.py --topology=v5e:16x16 [--program=train|decode] [--json]

Only shapes are read: no data, no tokenizer, no parameters. `--topology=cpu` (or gpu) compiles for what is here. Exit
code 1 says that a program does not fit. Figures are those of one chip; products count 2 per multiply-add.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from launch.advice import advice
from launch.chips import GB, chip_of, devices_of
from launch.cost import Cost, cost, step_of
from launch.hlo import parse as parse_text
from launch.programs import Program, decode_step, model_flops, setup_of, training_step
from launch.roofline import Roofline, Traffic, roofline, traffic_of
from launch.sweep import Parser
from model import Model
from model.config import unknown
from model.sharding import make_mesh, parse_rules, using
from train.cli import guarded, parse

USAGE = "usage: python -m launch.plan --config=configs/... --topology=v5e:16x16"
PROGRAMS = {"train": training_step, "decode": decode_step}
EXCEEDS = (
    r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM \(([\d.]+)([KMGT]?)B?\)",
    r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
    """One program, compiled or refused: `state` bytes a chip are given; `needs` and `refused` are the compiler's own
    words where it does not fit, `unread` why its text could not be read.
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

    @property
    def fits(self) -> bool:
        """Whether the compiler took it, and the chip can hold it."""
        within = self.capacity is None or self.memory is None or self.memory.peak <= self.capacity
        return not self.refused and within


def plan(
    config: ConfigDict, topology: str, programs: Sequence[str] = ("train", "decode"), texts: str = ""
) -> list[Planned]:
    """Compiles the programs of a config for a topology, one after the other; `texts` is a folder for what came out.

    Raises ValueError for a config, a mesh or a topology that cannot be, and launch.chips.Missing without the compiler.
    """
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    with using(parse_rules(config.sharding)):
        setup = setup_of(config, mesh)
        return [compiled(PROGRAMS[name](setup), config, mesh, setup.model, texts) for name in programs]


def compiled(program: Program, config: ConfigDict, mesh: jax.sharding.Mesh, model: Model, texts: str = "") -> Planned:
    """Lowers and compiles one program and reads what came out."""
    chip, started = chip_of(mesh.devices.flat[0]), time.perf_counter()
    asked = model_flops(model, program) / mesh.devices.size
    state = bytes_of(program.arguments)
    known = dict(
        name=program.name,
        trains=program.trains,
        tokens=program.tokens,
        model_flops=asked,
        state=state,
        capacity=chip.hbm if chip else None,
    )
    try:
        with quiet():
            made = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(str(error), known, started, config, mesh)
    memory = memory_of(made, mesh.devices.flat[0].platform)
    found = Planned(
        **known,  # type: ignore[arg-type]
        seconds=time.perf_counter() - started,
        peak_rss=peak_rss(),
        memory=memory,
        advice=tuple(advice(config, mesh, state, memory.peak, chip.hbm, program.trains)) if chip else (),
    )
    try:
        text = made.as_text() or ""
        if texts:
            Path(texts).mkdir(parents=True, exist_ok=True)
            (Path(texts) / f"{config.name}_{program.name.replace(' ', '_')}.txt").write_text(text)
        return with_costs(found, text, program, mesh)
    except (ValueError, LookupError, jax.errors.JaxRuntimeError) as error:  # what fits is known all the same
        return dataclasses.replace(found, unread=f"{type(error).__name__}: {error}")


def with_costs(found: Planned, text: str, program: Program, mesh: jax.sharding.Mesh) -> Planned:
    """The plan with what the compiled text says."""
    module, chip = parse_text(text), chip_of(mesh.devices.flat[0])
    spent = cost(module, program.turns) if program.trains else step_of(module, program.turns)
    traffic = tuple(traffic_of(spent, mesh, chip))
    bounds = roofline(spent, traffic, chip)
    mfu = found.model_flops / (chip.flops * bounds.seconds) if chip and bounds.seconds else None
    return dataclasses.replace(found, cost=spent, traffic=traffic, roofline=bounds, mfu=mfu)


def _refused(words: str, known: dict[str, Any], started: float, config: ConfigDict, mesh: Any) -> Planned:
    """What is known of a program that does not fit: the compiler's figures, and the state's size from its shapes."""
    needs, capacity = figures(words)
    capacity = capacity or known["capacity"] or 0.0
    return Planned(
        **{**known, "capacity": capacity},
        seconds=time.perf_counter() - started,
        peak_rss=peak_rss(),
        needs=needs,
        refused=words.splitlines()[0],
        advice=tuple(advice(config, mesh, known["state"], needs or capacity, capacity, known["trains"])),
    )


def figures(words: str) -> tuple[float | None, float | None]:
    """(bytes needed, bytes there are) in what the compiler says of a program that does not fit."""
    for pattern in EXCEEDS:
        if found := re.search(pattern, words):
            needs, unit, has, unit_of_has = found.groups()
            return float(needs) * SIZES[unit], float(has) * SIZES[unit_of_has]
    return None, None


def memory_of(made: jax.stages.Compiled, platform: str) -> Memory:
    """The compiler's account of a program's memory; where it has no peak, all of it at once."""
    found: Any = made.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = (found.argument_size_in_bytes, outputs, found.temp_size_in_bytes, found.generated_code_size_in_bytes)
    peak = found.peak_memory_in_bytes if platform == "tpu" else sum(parts)
    return Memory(*parts, peak, found.host_argument_size_in_bytes + found.host_temp_size_in_bytes)


def peak_rss() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Compilers write warnings to the file of errors itself; they are kept off the screen."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def bytes_of(shapes: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings; those without one are whole."""
    leaves = [leaf for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "shape")]
    shards = [leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape for leaf in leaves]
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shards, leaves, strict=True))


def show(found: Sequence[Planned], config: ConfigDict, topology: str, screen: Console) -> None:
    """The tables, one below the other."""
    for one in found:
        table = Table(title=f"{config.name}: {one.name} on {topology}", title_justify="left")
        table.add_column("per chip")
        table.add_column("", justify="right")
        table.add_column("")
        for row in rows_of(one):
            table.add_row(*row)
        screen.print(table)
        for sentence in one.advice:
            screen.print(f"  change: {sentence}", soft_wrap=True)


def rows_of(one: Planned) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of everything that is known of a program."""
    return [*_memory_rows(one), *_work_rows(one), *_traffic_rows(one), *_bound_rows(one), _compiler_row(one)]


def _memory_rows(one: Planned) -> list[tuple[str, str, str]]:
    capacity = f"of {gigabytes(one.capacity)}" if one.capacity else "capacity not in the table of chips"
    if one.memory is None:
        verdict = ("does not fit", f"needs {gigabytes(one.needs)}", capacity)
        return [verdict, ("arguments", gigabytes(one.state), "from their shapes")]
    memory = one.memory
    rows = [
        (
            "arguments",
            gigabytes(memory.arguments),
            "parameters, optimiser, batch" if one.trains else "parameters, cache",
        ),
        ("outputs", gigabytes(memory.outputs), "besides what is given back in place"),
        ("temporaries", gigabytes(memory.temporaries), ""),
        ("program", gigabytes(memory.code), ""),
    ]
    rows += [("on the host", gigabytes(memory.host), "")] if memory.host else []
    return [*rows, ("fits" if one.fits else "does not fit", gigabytes(memory.peak), f"at the most, {capacity}")]


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


def as_json(found: Sequence[Planned], config: ConfigDict, topology: str) -> str:
    """The same figures for programs to read."""
    programs = []
    for one in found:
        fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name != "cost"}
        fields |= {"memory": one.memory and dataclasses.asdict(one.memory)}
        fields |= {"traffic": [dataclasses.asdict(line) for line in one.traffic]}
        fields |= {"roofline": one.roofline and dataclasses.asdict(one.roofline), "fits": one.fits}
        spent = one.cost and {"flops": one.cost.flops, "bytes": one.cost.bytes, "unknown_loops": one.cost.unknown}
        programs.append(fields | {"cost": spent})
    return json.dumps({"name": config.name, "topology": topology, "programs": programs}, indent=1)


def parser() -> Parser:
    """The flags of `python -m launch.plan`."""
    flags = Parser("python -m launch.plan", description="Does it fit, and what bounds it?", allow_abbrev=False)
    flags.add_argument("--config", required=True, help="a recipe, as for python -m train")
    flags.add_argument("--topology", required=True, help="v5e:16x16, v5p:8x8x16, ..., or cpu or gpu for what is here")
    flags.add_argument("--program", default=",".join(PROGRAMS), help=" and ".join(PROGRAMS) + ", with a comma")
    flags.add_argument("--text", default="", help="a folder to write the compiled programs to, as text")
    flags.add_argument("--json", action="store_true", help="print figures for programs to read")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 where every program fits, 1 where one does not, 2 for wrong use."""
    verdict: list[bool] = []
    code = guarded(lambda: verdict.extend(run(*parser().parse_known_args(arguments))))
    return code or int(not all(verdict))


def run(options: argparse.Namespace, rest: list[str]) -> list[bool]:
    """Plans and prints; which programs fit."""
    names = options.program.split(",")
    for name in names:
        if name not in PROGRAMS:
            raise ValueError(unknown("program", name, PROGRAMS))
    config, _ = parse(["plan", f"--config={options.config}", "--workdir=nowhere", *rest], USAGE)
    found = plan(config, options.topology, names, options.text)
    screen = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if options.json:
        print(as_json(found, config, options.topology))
    else:
        show(found, config, options.topology, screen)
    return [one.fits for one in found]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
