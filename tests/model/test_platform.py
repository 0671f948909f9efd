"""Choices by hardware look at the mesh a program is for, which need not be where it is compiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from model import platform


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("TPU v5 lite", "tpu", ("einsum", "associative", "ragged", "bfloat16", "dequantized")),
        ("TPU7x", "tpu", ("einsum", "associative", "ragged", "bfloat16", "native")),
        ("cpu", "cpu", ("einsum", "loop", "capacity", "float32", "dequantized")),
    ],
)
def test_the_mesh_decides(kind: str, name: str, expected: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.delenv("SAGAX_FLOAT8", raising=False)
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=name)
    mesh = SimpleNamespace(abstract_device=device)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    assert platform.platform() == name
    choices = ("attention_implementation", "recurrence_implementation", "expert_dispatch", "compute_dtype")
    assert tuple(getattr(platform, choice)() for choice in (*choices, "float8_product")) == expected


def test_without_a_mesh_it_is_what_is_here() -> None:
    assert platform.platform() == jax.default_backend()
