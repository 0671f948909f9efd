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
from launch.chips import GB, GIB, Chip, chip_of, devices_of
from launch.cost import Cost, cost, step_of
from launch.hlo import parse as parse_text
from launch.programs import Program, decode_step, model_flops, setup_of, training_step
from launch.roofline import Roofline, Traffic, roofline, traffic_of
from launch.sweep import Parser
from model.sharding import make_mesh
from train.cli import guarded, parse

USAGE = "usage: python -m launch.plan --config=configs/... --topology=v5e:16x16"
PROGRAMS = {"train": training_step, "decode": decode_step}
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on a chip: arguments, outputs that are no arguments given back, temporaries, the program itself."""

    arguments: int
    outputs: int
    temporaries: int
    code: int
    host: int = 0

    @property
    def total(self) -> int:
        """What must fit."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Planned:
    """One program, compiled or refused: `needs` and `refused` are the compiler's own words where it does not fit."""

    name: str
    tokens: int
    seconds: float
    peak_rss: int
    capacity: float | None
    model_flops: float
    memory: Memory | None = None
    cost: Cost | None = None
    traffic: tuple[Traffic, ...] = ()
    roofline: Roofline | None = None
    mfu: float | None = None
    needs: float | None = None
    refused: str = ""
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the compiler took it, and the chip can hold it."""
        within = self.capacity is None or self.memory is None or self.memory.total <= self.capacity
        return not self.refused and within


def plan(config: ConfigDict, topology: str, programs: Sequence[str] = ("train", "decode")) -> list[Planned]:
    """Compiles the programs of a config for a topology, one after the other.

    Raises ValueError for a config, a mesh or a topology that cannot be, and launch.chips.Missing without the compiler.
    """
    devices = devices_of(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    setup = setup_of(config, mesh)
    return [compiled(PROGRAMS[name](setup), config, mesh, setup.model) for name in programs]


def compiled(program: Program, config: ConfigDict, mesh: jax.sharding.Mesh, model: Any) -> Planned:
    """Lowers and compiles one program and reads what came out."""
    chip, started = chip_of(mesh.devices.flat[0]), time.perf_counter()
    asked = model_flops(model, program) / mesh.devices.size
    known = dict(name=program.name, tokens=program.tokens, model_flops=asked, capacity=chip.hbm if chip else None)
    try:
        with quiet():
            made = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(str(error), known, started, config, mesh)
    seconds = time.perf_counter() - started
    memory = memory_of(made)
    module = parse_text(made.as_text())
    spent = cost(module, program.turns) if program.trains else step_of(module, program.turns)
    traffic = tuple(traffic_of(spent, mesh, chip))
    bounds = roofline(spent, traffic, chip)
    mfu = asked / (chip.flops * bounds.seconds) if chip and bounds.seconds else None
    return Planned(
        **known,  # type: ignore[arg-type]
        seconds=seconds,
        peak_rss=peak_rss(),
        memory=memory,
        cost=spent,
        traffic=traffic,
        roofline=bounds,
        mfu=mfu,
        advice=tuple(advice(config, mesh, memory, chip.hbm)) if chip else (),
    )


def _refused(words: str, known: dict[str, Any], started: float, config: ConfigDict, mesh: Any) -> Planned:
    used, capacity = figures(words)
    capacity = capacity or known["capacity"]
    found = program_figures(words)
    memory = Memory(found["arguments"], found["outputs"], found["temporaries"], 0) if found else None
    if memory is None and used:
        memory = Memory(0, 0, int(used), 0)
    return Planned(
        **{**known, "capacity": capacity},
        seconds=time.perf_counter() - started,
        peak_rss=peak_rss(),
        memory=memory,
        needs=used,
        refused=words,
        advice=tuple(advice(config, mesh, memory, capacity or 0)),
    )


def figures(words: str) -> tuple[float | None, float | None]:
    """(bytes needed, bytes there are) in what the compiler says of a program that does not fit."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", words)
    if not found:
        return None, None
    a, b, c, d = found.groups()
    return float(a) * SIZES[b], float(c) * SIZES[d]


def program_figures(words: str) -> dict[str, int]:
    """Arguments, outputs and temporaries in the same words; nothing where they are not told."""
    return {}


def memory_of(made: jax.stages.Compiled) -> Memory:
    """The compiler's account of a program's memory."""
    found: Any = made.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
        found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
    )


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
