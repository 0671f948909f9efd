"""Choices that depend on the hardware, all in one place."""

from __future__ import annotations

import os
import sys

import jax

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def attention_implementation(choice: str = "auto") -> str:
    """ "einsum" (ours; fastest on CPU) or "fused" (`jax.nn.dot_product_attention`, on accelerators)."""
    if choice != "auto":
        return choice
    return "einsum" if jax.default_backend() == "cpu" else "fused"


def compute_dtype(choice: str = "auto") -> str:
    """fp32 on CPU, where bf16 gains nothing, and bf16 on accelerators."""
    if choice != "auto":
        return choice
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


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
