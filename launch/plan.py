"""Compiles a run's programs for a pod that is not here, and says whether they fit and what bounds them:

    python -m launch.plan --config=configs/pretrain/llama31_8b.py --topology=v5e:16x16 [--program=train|decode] [--json]

Only shapes are read: no data, no tokenizer, no parameters. `--topology=cpu` (or gpu) compiles for what is here. Exit
code 1 says that a program does not fit. Figures are those of one chip; products count 2 per multiply-add. Of a pipeline
every stage is planned, or the one that --stage names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.chips import devices_of
from launch.compiling import compiled
from launch.needs import needs_of
from launch.planned import Planned, as_dict, rows_of
from launch.programs import decode_step, evaluation_step, reinforced, setup_of, training_step
from launch.stages import stages_of
from launch.sweep import Parser
from model.config import unknown
from model.sharding import make_mesh, parse_rules, using
from store.terminal import visible
from train.cli import guarded, parse

USAGE = "usage: python -m launch.plan --config=configs/... --topology=v5e:16x16"
PROGRAMS = {"train": training_step, "decode": decode_step, "eval": evaluation_step}


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


def show(programs: Sequence[Planned], config: ConfigDict, topology: str, screen: Console) -> None:
    """The tables, one below the other."""
    for one in programs:
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
    config = parse(["plan", f"--config={options.config}", "--workdir=nowhere", *rest], USAGE).config
    topology = options.topology or needs_of(config.to_dict()).tpu
    if not topology:
        raise ValueError(f"for which slice? give --topology, or config.launch.tpu; {USAGE}")
    screen, verdicts, told = Console(width=None if sys.stdout.isatty() else 110, highlight=False), list[bool](), []
    for stage in stages_of(config, options.stage):
        try:
            planned = plan(stage, topology, asked or usual(stage), options.text)
        except ValueError as error:
            raise ValueError(f"{stage.name}: {error}") if config.stages else error from error
        verdicts += [one.fits for one in planned]
        told.append(as_dict(planned, stage, topology))
        if not options.json:
            show(planned, stage, topology, screen)
    if options.json:
        many = {"name": config.name, "topology": topology, "stages": told}
        print(json.dumps(many if config.stages and not options.stage else told[0], indent=1))
    return verdicts


def usual(config: ConfigDict) -> list[str]:
    """The programs that a run has: its step, and its sampler where anything is sampled."""
    return ["train", "decode"] if reinforced(config) or config.eval.examples else ["train"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
