"""A pipeline killed at random moments ends as if nothing had happened: `tests.train.killed_pipeline` in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.killed_pipeline import main

KILLS = 3


@pytest.mark.more
def test_a_killed_pipeline_ends_like_an_undisturbed_one(tmp_path: Path, parity_seed: int) -> None:
    report = main(tmp_path, KILLS, parity_seed, ["--config=tests/tiny_config.py:graph"])
    assert report["kills"]
    assert report["differences"] == [], report
