"""What chips can do: one table with sources, and pods of them that are not here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
from typing import Any

import jax

from launch.slices import slice_of
from model.config import unknown

HERE = ("cpu", "gpu", "tpu")
GB, GIB = 1e9, 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: `flops` a second of bf16 products; `hbm` bytes that a program may use; `bandwidth` of that memory;
    `link` bytes a second in one direction over one link to a neighbour, or with no `torus` to the switch; sides of a
    slice that are multiples of `wraps` close to rings.
    """

    kind: str
    flops: float
    hbm: float
    bandwidth: float
    link: float
    torus: int
    wraps: int
    source: str


CHIPS: dict[str, Chip] = {
    # The compiler leaves 15.75 of 16 GiB to programs, and 95.74 of 96 (its own words where a program does not fit).
    # A chip's "bidirectional" interconnect counts all its links in both directions: 400 GB/s = 4 links x 2 x 50.
    "v5e": Chip(
        "TPU v5 lite", 197e12, 15.75 * GIB, 819 * GB, 50 * GB, 2, 16, "https://cloud.google.com/tpu/docs/v5e"
    ),
    "v5p": Chip("TPU v5", 459e12, 95.74 * GIB, 2765 * GB, 100 * GB, 3, 4, "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip("TPU v6 lite", 918e12, 31.25 * GIB, 1640 * GB, 100 * GB, 2, 16, "https://cloud.google.com/tpu/docs/v6e"),
    "a100": Chip(
        "NVIDIA A100", 312e12, 80 * GB, 2039 * GB, 300 * GB, 0, 0,
        "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet.pdf",
    ),
    "h100": Chip(
        "NVIDIA H100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 0, 0, "https://www.nvidia.com/en-us/data-center/h100/"
    ),
    "h200": Chip(
        "NVIDIA H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 0, 0, "https://www.nvidia.com/en-us/data-center/h200/"
    ),
}  # fmt: skip


class Missing(ValueError):
    """The ahead-of-time compiler is not installed, or not the one that this JAX can read."""


def devices_of(topology: str) -> list[jax.Device]:
    """The chips of "v5p:8x8x16", which need not be here, or with "cpu" or "gpu" those that are.

    Raises ValueError for a slice that does not exist, and where there are no such devices.
    """
    if topology in HERE:
        try:
            return jax.devices(topology)
        except RuntimeError as error:
            raise ValueError(
                f"--topology={topology} plans for the devices that are here, and there are none"
            ) from error
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology, re.ASCII)
    if not match:
        raise ValueError(f"--topology is cpu, gpu, or a pod such as v5e:16x16 or v5p:8x8x16, found {topology!r}")
    pods = [name for name, chip in CHIPS.items() if chip.torus]
    if match.group(1) not in pods:
        raise ValueError(unknown("kind of pod", match.group(1), pods))
    wanted = slice_of(topology, "--topology")
    check_compiler()
    jax.config.update("jax_platforms", "cpu")  # with libtpu installed, JAX would look for chips of its own
    # Outside of a TPU host these keep libtpu from asking the network what machine this is.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_WORKER_ID", "0")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is touched
    from jax.experimental import topologies

    # libtpu takes hosts to be of 2x2 chips where it is not told.
    sides = (*map(int, wanted.topology.split("x")), 1)[:3]
    alone = {"chips_per_host_bounds": sides} if wanted.hosts == 1 else {}
    name = f"{wanted.generation}:{wanted.topology}"
    return list(topologies.get_topology_desc(name, platform="tpu", **alone).devices)


def check_compiler() -> None:
    """Raises Missing unless libtpu is here, and of the version that this JAX was made for."""
    pinned = next((line for line in importlib.metadata.requires("jax") or () if line.startswith("libtpu")), "")
    wanted = re.split(r"[=;]+", pinned)[1].strip() if "==" in pinned else ""
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise Missing(
            "to compile for a TPU that is not here takes libtpu: pip install 'sagax[plan]'"
            f" (JAX {jax.__version__} asks for libtpu {wanted})"
        ) from None
    if wanted and not version.startswith(wanted.rstrip("*")):
        raise Missing(
            f"libtpu {version} is here, but JAX {jax.__version__} reads programs of libtpu {wanted} alone: pip install"
            f" 'libtpu=={wanted}'"
        )


def chip_of(device: Any) -> Chip | None:
    """What is known of a device's kind; None for one that the table does not have, such as a CPU."""
    kinds = sorted(CHIPS.values(), key=lambda chip: -len(chip.kind))
    return next((chip for chip in kinds if device.device_kind.startswith(chip.kind)), None)
