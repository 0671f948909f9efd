"""A run is a hash: eight short runs write, byte for byte, what they wrote before the code was changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.digests import RUNS, machine, recorded
from tests.conftest import ROOT

REMEDY = (
    "the run {name} is not what it was. Where that is meant, say why in CHANGELOG.md and record it:"
    " python -m benchmarks.digests --record"
)


@pytest.mark.more_but("grpo_kl")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_a_hash(name: str) -> None:
    wanted = recorded().get(machine())
    if wanted is None:
        pytest.skip(f"no digests of {machine()} in tests/golden/digests.json: python -m benchmarks.digests --record")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks.digests", "--runs", name]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)[name] == wanted[name], REMEDY.format(name=name)
