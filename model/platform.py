"""Choices that depend on the hardware, all in one place."""

from __future__ import annotations

import os
import re
import sys

import jax

MANY_SCORES = 2048 * 2048  # of one head and row: from here on they are not held at once
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def platform() -> str:
    """cpu, gpu or tpu: that of the current mesh's devices, which need not be here, else JAX's own choice."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def attention_implementation(choice: str = "auto", queries: int = 1, keys: int = 1, split: bool = False) -> str:
    """ "einsum" (all scores at once; fastest on CPU), "blocked" (model/blocked_attention.py: where they would not fit,
    and where columns are `split` over devices) or "fused" (`jax.nn.dot_product_attention`: on GPU, for rows that are
    short, because without a kernel named it is plain XLA there and holds all scores, too).
    """
    if choice != "auto":
        return choice
    if split or queries * keys >= MANY_SCORES:
        return "blocked"
    return "fused" if platform() == "gpu" else "einsum"


def recurrence_implementation(choice: str = "auto") -> str:
    """ "loop" (one pass over memory; fastest on CPU) or "associative" (logarithmic depth, on accelerators)."""
    if choice != "auto":
        return choice
    return "loop" if platform() == "cpu" else "associative"


def expert_dispatch(choice: str = "auto", devices: int = 1) -> str:
    """How rows reach experts (model/dispatch.py): "expert_parallel" on a mesh of several devices, else "ragged" on TPU,
    where `ragged_dot` has a kernel that multiplies group by group, and "capacity" elsewhere, where it computes every
    expert for every row. None of them drops a row unless a capacity factor is given.
    """
    if choice != "auto":
        return choice
    if devices > 1:
        return "expert_parallel"
    return "ragged" if platform() == "tpu" else "capacity"


def compute_dtype(choice: str = "auto") -> str:
    """fp32 on CPU, where bf16 gains nothing, and bf16 on accelerators."""
    if choice != "auto":
        return choice
    return "float32" if platform() == "cpu" else "bfloat16"


def float8_product(choice: str = "auto") -> str:
    """How float8 operands are multiplied: "native" where the hardware can, else "dequantized" to fp32 first.

    Same numbers either way, but for fp32 rounding. SAGAX_FLOAT8 overrides the choice, by any name in PRODUCTS of
    model/precision.py.
    """
    choice = os.environ.get("SAGAX_FLOAT8", choice) if choice == "auto" else choice
    if choice != "auto":
        return choice
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.platform == "tpu":
        return "native" if device.device_kind.startswith(("TPU7", "TPU v7")) else "dequantized"
    device = jax.devices()[0]  # a mesh's description of its devices leaves the capability out
    # NVIDIA's since Ada and Hopper; other makers' devices tell no number here, or have another float8.
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    able = capability is not None and tuple(map(int, capability.groups())) >= (8, 9)
    return "native" if able else "dequantized"


def restart_with_huge_pages(arguments: list[str]) -> None:
    """Re-executes this Python with glibc's huge-page allocator, which keeps XLA:CPU off the page-fault path.

    The setting is read before the process starts, hence the restart. Does nothing off Linux, when
    GLIBC_TUNABLES already speaks of hugetlb, or when SAGAX_NO_RESTART is set.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "hugetlb" in tunables or "SAGAX_NO_RESTART" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{HUGE_PAGES}".lstrip(":")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])
