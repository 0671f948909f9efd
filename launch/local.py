"""Runs on this machine, side by side, each with its part of the devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.runs import Job, Run, Submit, start, state_of

CPU, GPU, TPU = "CPU cores", "GPUs", "TPU chips"
# How so many chips of a host lie, for libtpu: x, y, z.
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@contextmanager
def local(runs: Sequence[Run], parallel: int) -> Iterator[Submit]:
    """Each slot has an equal part of the devices; ValueError where they do not go round."""
    kind, devices = found_devices(os.environ)
    parts = shares(kind, devices, parallel)
    for run in runs:
        if kind == GPU and run.needs.gpus > len(parts[0]):
            raise ValueError(f"{run.name} needs {run.needs.gpus} GPUs; --parallel={parallel} leaves {len(parts[0])}")

    def submit(run: Run, slot: int) -> Job:
        environment = {} if parallel == 1 else visible(kind, parts[slot])
        return Process(run, started(run, environment, parts[slot] if kind == CPU and parallel > 1 else ()))

    yield submit


@dataclass(frozen=True)
class Process:
    """A run trained by a process of this machine."""

    run: Run
    process: subprocess.Popen[bytes]

    def poll(self) -> str:
        """Where it is, by its exit code."""
        return state_of(self.run, self.process.poll())

    def stop(self) -> None:
        """SIGTERM: the run saves a checkpoint after the step it is in."""
        self.process.terminate()


def started(run: Run, environment: Mapping[str, str], cores: Sequence[str]) -> subprocess.Popen[bytes]:
    """The process of a run, on these cores alone if there are any."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return start(run, environment)
    # Of this thread, and so of the process it starts: XLA then makes as many threads as it has cores.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, map(int, cores))
    try:
        return start(run, environment)
    finally:
        os.sched_setaffinity(0, before)


def found_devices(environment: Mapping[str, str], dev: Path = Path("/dev")) -> tuple[str, list[str]]:
    """What there is to share out, found without taking any of it: TPU chips, GPUs or CPU cores, by number."""
    platforms = environment.get("JAX_PLATFORMS", "")
    for kind, platform, variable, patterns in (
        (TPU, "tpu", "TPU_VISIBLE_CHIPS", ("accel[0-9]*", "vfio/[0-9]*")),
        (GPU, "cuda", "CUDA_VISIBLE_DEVICES", ("nvidia[0-9]*",)),
    ):
        files = next(filter(None, (list(dev.glob(pattern)) for pattern in patterns)), [])
        numbers = [str(number) for number in range(len(files))]
        allowed = [part for part in environment.get(variable, ",".join(numbers)).split(",") if part]
        if numbers and allowed and (not platforms or platform in platforms or (kind == GPU and "gpu" in platforms)):
            return kind, allowed
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return CPU, [str(core) for core in sorted(cores)]


def shares(kind: str, devices: Sequence[str], parallel: int) -> list[list[str]]:
    """Equal parts of the devices; slots beyond the number of cores share them, chips and GPUs cannot be shared."""
    width = len(devices) // parallel
    if not width and kind != CPU:
        raise ValueError(
            f"--parallel={parallel} is more than the {len(devices)} {kind} of this machine;"
            f" --parallel={len(devices)}, or JAX_PLATFORMS=cpu to train without them"
        )
    if kind == TPU and parallel > 1 and width not in BOUNDS:
        raise ValueError(f"a run cannot have {width} of {len(devices)} TPU chips; --parallel for 1, 2, 4 or 8 each")
    if not width:
        return [[devices[slot % len(devices)]] for slot in range(parallel)]
    return [list(devices[slot * width : (slot + 1) * width]) for slot in range(parallel)]


def visible(kind: str, devices: Sequence[str]) -> dict[str, str]:
    """What shows a process these devices alone."""
    numbers = ",".join(devices)
    if kind == GPU:
        return {"CUDA_VISIBLE_DEVICES": numbers}
    if kind == TPU:
        # By their new names and their old ones, which a pod on GKE finds set for its whole host.
        chips = dict.fromkeys(("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_CHIPS_PER_HOST_BOUNDS"), BOUNDS[len(devices)])
        return {"TPU_VISIBLE_CHIPS": numbers, **chips, "TPU_PROCESS_BOUNDS": "1,1,1", "TPU_HOST_BOUNDS": "1,1,1"}
    return {}
