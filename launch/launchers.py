"""Where the runs of a sweep are trained: on this machine, on a Ray cluster, under Slurm."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from launch.local import local
from launch.on_ray import on_ray
from launch.on_slurm import on_slurm
from launch.runs import Launcher, Run
from model.config import unknown

LAUNCHERS: dict[str, Launcher] = {"local": local, "ray": on_ray, "slurm": on_slurm}
PACKAGES = {"ray": "ray", "slurm": "submitit"}  # which the extras of the same names install


def launcher(name: str, runs: Sequence[Run]) -> Launcher:
    """A launcher; ValueError for an unknown one, and for runs that it has no place for."""
    if name not in LAUNCHERS:
        raise ValueError(unknown("launcher", name, LAUNCHERS))
    for run in runs:
        if name == "local" and run.needs.hosts > 1:
            raise ValueError(f"{run.name} is to train on {run.needs.hosts} hosts, and --launcher=local has this one")
        if name == "slurm" and run.needs.tpu:
            raise ValueError(f"{run.name} is to have a TPU slice, {run.needs.tpu}; --launcher=slurm has GPUs and cores")
        if name == "slurm":
            check_path((run.beside / run.name).absolute())
    return LAUNCHERS[name]


def check_path(folder: Path) -> None:
    """Raises ValueError for a folder whose name Slurm and submitit would not take as it is written: in the names of
    output files %j, %A and all that follows a percent sign stands for something of the job, and a backslash ends that.
    """
    for sign, what in (("%", "a pattern such as %j"), ("\\", "an escape"), ("\n", "the end of a line")):
        if sign in str(folder):
            part = next(part for part in reversed(folder.parts) if sign in part)
            raise ValueError(
                f"--launcher=slurm cannot train in {folder}: Slurm takes {sign!r} in {part!r} for {what}; rename it, or"
                " choose another --workdir"
            )


def check_installed(name: str) -> None:
    """Raises ValueError where what a launcher needs is not on this machine."""
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(f"--launcher={name} needs {package}; pip install -c constraints.txt -e '.[{name}]'")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("--launcher=slurm needs sbatch, which is not on this machine; start the sweep on a login node")
