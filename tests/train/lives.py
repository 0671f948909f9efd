"""Runs as processes of their own, on one device, and what two of them must have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from infer.load import checkpoint_steps
from store.records import read_metrics
from tests.trunk import trees_equal

ROOT = Path(__file__).resolve().parents[2]
IN_USE = ("epochs=2", "minibatches=2", "overlap=True", "track_kl=True", "sync_every=4", "carry=1")
ENVIRONMENT = {
    **os.environ,
    "SAGAX_NO_RESTART": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
}


def start(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A Python of its own on one device; `before`: a command that starts it."""
    command = [*before, sys.executable, *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)


def complete(*arguments: str, longest: float = 300) -> str:
    """What such a run says, which must come to a good end within `longest` seconds."""
    process = start("-m", "train", *arguments)
    output, errors = process.communicate(timeout=longest)
    assert process.returncode == 0, errors
    return output


def flags_of(kind: str, steps: int, every: int) -> list[str]:
    """The command line's settings of a tiny run: of `sft`, `grpo`, or `in use`, grpo that carries much along."""
    more = [f"--config.rl.{setting}" for setting in IN_USE if kind == "in use"]
    kind = "sft" if kind == "sft" else "grpo"
    settings = [f"--config.steps={steps}", f"--config.checkpoint.every={every}", "--config.optimizer.ema=0.9"]
    return [f"--config=tests/tiny_config.py:{kind}", *settings, *more]


def saved(folder: Path, item: str) -> Any:
    """One item of the last checkpoint, as NumPy arrays."""
    at = folder / "checkpoints" / str(checkpoint_steps(folder)[-1]) / item
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(at)


def repeatable(record: dict[str, Any]) -> dict[str, Any]:
    """A metrics record without clocks."""
    return {name: value for name, value in record.items() if "time" not in name}


def assert_same_run(found: Path, want: Path, steps: int) -> None:
    """Every number and every text of two complete runs, bit for bit; clocks differ."""
    for item in ("params", "ema", "rest"):
        assert trees_equal(saved(found, item), saved(want, item)), item
    one, other = ([repeatable(r) for r in read_metrics(folder)] for folder in (found, want))
    assert one == other
    assert [r["step"] for r in one if "loss" in r] == list(range(1, steps + 1))
    for name in ("samples.jsonl", "accuracy.jsonl"):
        assert (found / name).is_file() == (want / name).is_file()
        assert not (want / name).is_file() or (found / name).read_text() == (want / name).read_text(), name
