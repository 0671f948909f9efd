"""The list of sums is on the disk before the checkpoint has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.manifest import SUMS, write_sums


def test_the_list_is_forced_to_the_disk_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "array").write_bytes(b"numbers")
    forced = list[str]()
    monkeypatch.setattr(os, "fsync", lambda number: forced.append(os.readlink(f"/proc/self/fd/{number}")))
    write_sums(tmp_path)
    assert forced == [str(tmp_path / SUMS)]
    assert (tmp_path / SUMS).read_text().endswith("  array\n")
