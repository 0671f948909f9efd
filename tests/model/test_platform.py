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
        ("NVIDIA H100", "gpu", ("fused", "associative", "capacity", "bfloat16", "dequantized")),
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


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [("gpu", "fused", "blocked"), ("tpu", "einsum", "blocked"), ("cpu", "einsum", "blocked")],
)
def test_long_rows_never_hold_all_scores(name: str, short: str, long: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(platform, "platform", lambda: name)
    choose = platform.attention_implementation
    assert [choose("auto", n, n) for n in (1, 512, 2047)] == [short] * 3
    assert [choose("auto", n, n) for n in (2048, 2**15)] == [long] * 2
    assert choose("auto", 1, 2**20) == short, "one query against a long cache has few scores"
    assert choose("auto", 64, 64, split=True) == "blocked"
    assert choose("fused", 2**15, 2**15) == "fused"


@pytest.mark.parametrize(("name", "alone"), [("gpu", "capacity"), ("tpu", "ragged"), ("cpu", "capacity")])
def test_experts_are_multiplied_in_groups_only_where_there_is_a_kernel(name: str, alone: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(platform, "platform", lambda: name)
    assert (platform.expert_dispatch(), platform.expert_dispatch("auto", 8)) == (alone, "expert_parallel")
    assert platform.expert_dispatch("ragged", 8) == "ragged"


def test_without_a_mesh_it_is_what_is_here() -> None:
    assert platform.platform() == jax.default_backend()
