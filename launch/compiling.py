"""One program lowered and compiled for devices that are not here, and what the compiler says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from launch.advice import advice
from launch.chips import Chip, chip_of
from launch.cost import cost, step_of
from launch.hlo import parse as parse_text
from launch.planned import Memory, Planned
from launch.programs import Program, model_flops
from launch.roofline import roofline, traffic_of
from model import Model
from train.state import HOST

EXCEEDS = (
    r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM \(([\d.]+)([KMGT]?)B?\)",
    r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compiled(program: Program, config: ConfigDict, mesh: jax.sharding.Mesh, model: Model, texts: str = "") -> Planned:
    """Lowers and compiles one program and reads what came out."""
    chip, started = chip_of(mesh.devices.flat[0]), time.perf_counter()
    asked = model_flops(model, program) / mesh.devices.size
    state, beside = bytes_of(program.arguments), {name: bytes_of(tree) for name, tree in program.beside.items()}
    known = dict(
        name=program.name,
        trains=program.trains,
        tokens=program.tokens,
        model_flops=asked,
        state=state,
        on_host=bytes_of(program.arguments, HOST),
        beside={name: size for name, size in beside.items() if size},
        left_out=program.left_out,
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
    planned = Planned(
        **known,  # type: ignore[arg-type]
        seconds=time.perf_counter() - started,
        peak_rss=peak_rss(),
        memory=memory,
        advice=_advice(config, mesh, state, memory.peak + sum(beside.values()), chip, program.trains),
    )
    try:
        text = made.as_text() or ""
        if texts:
            Path(texts).mkdir(parents=True, exist_ok=True)
            (Path(texts) / re.sub(r"[^\w.=,+-]+", "_", f"{config.name}_{program.name}.txt")).write_text(text)
        return with_costs(planned, text, program, mesh)
    except (ValueError, LookupError, jax.errors.JaxRuntimeError) as error:  # what fits is known all the same
        return dataclasses.replace(planned, unread=f"{type(error).__name__}: {error}")


def _advice(
    config: ConfigDict, mesh: Any, state: int, needs: float, chip: Chip | None, trains: bool
) -> tuple[str, ...]:
    return tuple(advice(config, mesh, state, needs, chip.hbm, trains)) if chip else ()


def with_costs(planned: Planned, text: str, program: Program, mesh: jax.sharding.Mesh) -> Planned:
    """The plan with what the compiled text says."""
    module, chip = parse_text(text), chip_of(mesh.devices.flat[0])
    spent = cost(module, program.turns) if program.trains else step_of(module, program.turns)
    traffic = tuple(traffic_of(spent, mesh, chip))
    bounds = roofline(spent, traffic, chip)
    mfu = planned.model_flops / (chip.flops * bounds.seconds) if chip and bounds.seconds else None
    return dataclasses.replace(planned, cost=spent, traffic=traffic, roofline=bounds, mfu=mfu)


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
        if match := re.search(pattern, words):
            needs, unit, has, unit_of_has = match.groups()
            return float(needs) * SIZES[unit], float(has) * SIZES[unit_of_has]
    return None, None


def memory_of(made: jax.stages.Compiled, platform: str) -> Memory:
    """The compiler's account of a program's memory; where it has no peak, all of it at once."""
    told: Any = made.memory_analysis()
    outputs = told.output_size_in_bytes - told.alias_size_in_bytes
    parts = (
        told.argument_size_in_bytes,
        outputs,
        told.temp_size_in_bytes,
        told.generated_code_size_in_bytes,
    )
    peak = told.peak_memory_in_bytes if platform == "tpu" else sum(parts)
    return Memory(*parts, peak, told.host_argument_size_in_bytes + told.host_temp_size_in_bytes)


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


def bytes_of(shapes: Any, memory: str = "") -> int:
    """Bytes that one device holds of a tree of shapes with shardings; those without one are whole. Of a `memory` by its
    name, or (nothing) of all but the host's.
    """
    sizes = 0
    for leaf in (leaf for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "shape")):
        kind = getattr(leaf.sharding, "memory_kind", None)
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        sizes += math.prod(shape) * leaf.dtype.itemsize if (kind == memory if memory else kind != HOST) else 0
    return sizes
