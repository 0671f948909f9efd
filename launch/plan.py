"""Compiles a run's programs for a pod that is not here, and says whether they fit and what bounds them:

    python -m launch.plan --config=configs/pretrain/llama31_8b.py --topology=v5e:16x16 [--program=train|decode] [--json]

Only shapes are read: no data, no tokenizer, no parameters. `--topology=cpu` (or gpu) compiles for what is here. Exit
code 1 says that a program does not fit. Figures are those of one chip; products count 2 per multiply-add. Of a pipeline
every stage is planned, or the one that --stage names.
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
from rich.text import Text

from launch.advice import advice
from launch.chips import Chip, chip_of, devices_of
from launch.cost import cost, step_of
from launch.hlo import parse as parse_text
from launch.needs import needs_of
from launch.planned import Memory, Planned, as_dict, rows_of
from launch.programs import Program, decode_step, evaluation_step, model_flops, reinforced, setup_of, training_step
from launch.roofline import roofline, traffic_of
from launch.stages import stages_of
from launch.sweep import Parser
from model import Model
from model.config import unknown
from model.sharding import make_mesh, parse_rules, using
from store.terminal import visible
from train.cli import guarded, parse
from train.state import HOST

USAGE = "usage: python -m launch.plan --config=configs/... --topology=v5e:16x16"
PROGRAMS = {"train": training_step, "decode": decode_step, "eval": evaluation_step}
EXCEEDS = (
    r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM \(([\d.]+)([KMGT]?)B?\)",
    r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
    found = Planned(
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
        return with_costs(found, text, program, mesh)
    except (ValueError, LookupError, jax.errors.JaxRuntimeError) as error:  # what fits is known all the same
        return dataclasses.replace(found, unread=f"{type(error).__name__}: {error}")


def _advice(
    config: ConfigDict, mesh: Any, state: int, needs: float, chip: Chip | None, trains: bool
) -> tuple[str, ...]:
    return tuple(advice(config, mesh, state, needs, chip.hbm, trains)) if chip else ()


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


def show(found: Sequence[Planned], config: ConfigDict, topology: str, screen: Console) -> None:
    """The tables, one below the other."""
    for one in found:
        title = Text(visible(f"{config.name}: {one.name} on {topology}"), style="italic")
        table = Table(title=title, title_justify="left")
        table.add_column("per chip")
        table.add_column("", justify="right")
        table.add_column("")
        for row in rows_of(one):
            table.add_row(*(Text(visible(cell)) for cell in row))
        screen.print(table)
        for sentence in (
            *(f"change: {words}" for words in one.advice),
            *(f"not in it: {words}" for words in one.left_out),
        ):
            screen.print(Text(visible(f"  {sentence}")), soft_wrap=True)


def parser() -> Parser:
    """The flags of `python -m launch.plan`."""
    flags = Parser("python -m launch.plan", description="Does it fit, and what bounds it?", allow_abbrev=False)
    flags.add_argument("--config", required=True, help="a recipe, as for python -m train")
    flags.add_argument(
        "--topology",
        default="",
        help="v5e:16x16, v5p:8x8x16, ..., or cpu or gpu for what is here; else config.launch.tpu",
    )
    flags.add_argument("--program", default="", help=f"of {', '.join(PROGRAMS)}, with commas; else train and decode")
    flags.add_argument("--stage", default="", help="one stage of a pipeline; else all of them")
    flags.add_argument("--text", default="", help="a folder to write the compiled programs to, as text")
    flags.add_argument("--json", action="store_true", help="print figures for programs to read")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 where every program fits, 1 where one does not, 2 for wrong use."""
    verdict: list[bool] = []
    code = guarded(lambda: verdict.extend(run(*parser().parse_known_args(arguments))))
    return code or int(not all(verdict))


def run(options: argparse.Namespace, rest: list[str]) -> list[bool]:
    """Plans and prints, stage by stage; which programs fit."""
    asked = options.program.split(",") if options.program else []
    for name in asked:
        if name not in PROGRAMS:
            raise ValueError(unknown("program", name, PROGRAMS))
    config, _ = parse(["plan", f"--config={options.config}", "--workdir=nowhere", *rest], USAGE)
    topology = options.topology or needs_of(config.to_dict()).tpu
    if not topology:
        raise ValueError(f"for which slice? give --topology, or config.launch.tpu; {USAGE}")
    screen, verdicts, told = Console(width=None if sys.stdout.isatty() else 110, highlight=False), list[bool](), []
    for stage in stages_of(config, options.stage):
        try:
            found = plan(stage, topology, asked or usual(stage), options.text)
        except ValueError as error:
            raise ValueError(f"{stage.name}: {error}") if config.stages else error from error
        verdicts += [one.fits for one in found]
        told.append(as_dict(found, stage, topology))
        if not options.json:
            show(found, stage, topology, screen)
    if options.json:
        many = {"name": config.name, "topology": topology, "stages": told}
        print(json.dumps(many if config.stages and not options.stage else told[0], indent=1))
    return verdicts


def usual(config: ConfigDict) -> list[str]:
    """The programs that a run has: its step, and its sampler where anything is sampled."""
    return ["train", "decode"] if reinforced(config) or config.eval.examples else ["train"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
