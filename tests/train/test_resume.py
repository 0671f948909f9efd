"""Killed and terminated runs: they continue at their last checkpoint, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from infer.load import checkpoint_steps
from tests.trunk import trees_equal
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY, KILLED_AT = 12, 5, 7
ENVIRONMENT = {
    **os.environ,
    "SAGAX_NO_RESTART": "1",
    "XLA_FLAGS": "",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_CACHE", str(ROOT / ".cache" / "jax")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# A whole run, then the same run in a second folder, killed without warning in its eighth step.
WHOLE_THEN_KILLED = f"""
import os, signal, sys
from train.__main__ import main
from train.loop import Trainer

step = Trainer._one

def last_step(self, state, n, *rest, **named):
    if n == {KILLED_AT}:
        self.checkpoints._manager.wait_until_finished()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, state, n, *rest, **named)

whole, killed, *flags = sys.argv[1:]
assert main(["train", *flags, "--workdir=" + whole]) == 0
Trainer._one = last_step
main(["train", *flags, "--workdir=" + killed])
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """A Python of its own on one device."""
    command = [sys.executable, *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)


def flags_of(kind: str, steps: int, every: int = EVERY) -> list[str]:
    """The command line's settings of a tiny run."""
    settings = [f"--config.steps={steps}", f"--config.checkpoint.every={every}", "--config.optimizer.ema=0.9"]
    return [f"--config=tests/tiny_config.py:{kind}", *settings]


def saved(folder: Path, item: str) -> Any:
    """One item of the last checkpoint, as NumPy arrays."""
    at = folder / "checkpoints" / str(checkpoint_steps(folder)[-1]) / item
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(at)


def repeatable(record: dict[str, Any]) -> dict[str, Any]:
    """A metrics record without clocks and without the count of examples, which has those read ahead in it."""
    return {name: value for name, value in record.items() if "time" not in name and name != "read"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("sft", ()),
        ("grpo", ()),
        ("grpo", ("epochs=2", "minibatches=2", "overlap=True", "track_kl=True", "sync_every=4", "carry=1")),
    ],
    ids=["sft", "grpo", "grpo in use"],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(kind: str, more: tuple[str, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*flags_of(kind, STEPS), *(f"--config.rl.{flag}" for flag in more)]
    process = start("-c", WHOLE_THEN_KILLED, str(whole), str(killed), *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    assert checkpoint_steps(killed) == [EVERY]
    assert read_metrics(killed)[-1]["step"] > EVERY, "the test needs steps that are lost"
    resumed = start("-m", "train", *flags, f"--workdir={killed}")
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert f"resumed at step {EVERY} of {STEPS}" in output
    for item in ("params", "ema", "rest"):
        assert trees_equal(saved(killed, item), saved(whole, item)), item
    found, want = ([repeatable(r) for r in read_metrics(folder)] for folder in (killed, whole))
    assert found == want
    assert [r["step"] for r in found if "loss" in r] == list(range(1, STEPS + 1))
    for name in ("samples.jsonl", *(["accuracy.jsonl"] if kind == "grpo" else [])):
        assert (killed / name).read_text() == (whole / name).read_text(), name


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    steps, folder = 400, tmp_path / "run"
    command = ["-m", "train", *flags_of("sft", steps, every=0), f"--workdir={folder}"]
    process = start(*command)
    while process.poll() is None and len(read_metrics(folder)) < 3:
        time.sleep(0.02)
    process.terminate()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not (folder / "result.json").exists()
    assert " ".join(["python", *command]) in output
    reached = checkpoint_steps(folder)[-1]
    assert 3 <= reached < steps
    assert f"stopped at step {reached}" in output
    assert read_metrics(folder)[-1]["step"] == reached
    resumed = start(*command)
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert f"resumed at step {reached} of {steps}" in output
    assert json.loads((folder / "result.json").read_text())["status"] == "complete"
    assert [r["step"] for r in read_metrics(folder) if "loss" in r] == list(range(1, steps + 1))
