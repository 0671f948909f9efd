"""Killed and terminated runs: they continue at their last checkpoint, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
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
STEPS, EVERY, KILLS = 12, 2, 10
PHASES = ("batch", "update", "save", "written", "summed", "restore")
IN_USE = ("epochs=2", "minibatches=2", "overlap=True", "track_kl=True", "sync_every=4", "carry=1")
ENVIRONMENT = {
    **os.environ,
    "SAGAX_NO_RESTART": "1",
    "XLA_FLAGS": "",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_CACHE", str(ROOT / ".cache" / "jax")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
Point = tuple[str, int, float]  # the phase, which call of it, seconds after its start


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


def points(rng: random.Random, phases: tuple[str, ...], count: int) -> list[Point]:
    """`count` moments to die at, every phase before any comes again; of a rollout's calls there are few."""
    order = [phase for _ in range(count) for phase in rng.sample(phases, len(phases))][:count]
    return [
        (p, 1 if p in ("rollout", "restore") else rng.randint(1, 3), rng.choice((0, 0.03 * rng.random())))
        for p in order
    ]


def life(point: Point, flags: list[str]) -> bool:
    """Whether a run died at `point` before its end; at `outside` this process kills it, seconds after its start."""
    phase, count, delay = point
    if phase == "outside":
        process = start("-m", "train", *flags)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
    else:
        process = start("-m", "tests.train.killed", phase, str(count), str(delay), *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def killed_and_compared(moments: list[Point], flags: list[str], steps: int, folder: Path) -> None:
    """Kills a run at one moment after the other, and one more where it ends too early; each must end like the whole."""
    whole, runs = folder / "whole", [folder / "killed0"]
    first = [f"--whole={whole}"]
    for point in moments:
        also, first = ([], first) if point[0] == "outside" else (first, [])
        died = life(point, [*flags, f"--workdir={runs[-1]}", *also])
        if not died:
            runs.append(folder / f"killed{len(runs)}")
            assert life(("update", 3, 0.0), [*flags, f"--workdir={runs[-1]}"])
    for run in runs:
        process = start("-m", "train", *flags, f"--workdir={run}")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert_same_run(run, whole, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "more"), [("sft", ()), ("grpo", IN_USE)], ids=["sft", "grpo in use"])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    kind: str, more: tuple[str, ...], tmp_path: Path, parity_seed: int
) -> None:
    """Killed twice: in an update when there is a checkpoint, then wherever the draw says."""
    rng = random.Random(parity_seed)
    flags = [*flags_of(kind, STEPS), *(f"--config.rl.{flag}" for flag in more)]
    phases = PHASES if kind == "sft" else ("rollout", *PHASES)
    moments = [("update", rng.randint(4, 8), 0.02 * rng.random()), *points(rng, phases, 1)]
    killed_and_compared(moments, flags, STEPS, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SAGAX_FULL"), reason="make test-all runs it")
@pytest.mark.parametrize(
    ("kind", "more"), [("sft", ()), ("grpo", ()), ("grpo", IN_USE)], ids=["sft", "grpo", "grpo in use"]
)
def test_ten_deaths_each_at_random_moments(kind: str, more: tuple[str, ...], tmp_path: Path, parity_seed: int) -> None:
    """In the batch or rollout, in the update, in every part of the save and of the restore, and by the clock."""
    rng = random.Random(parity_seed)
    phases = PHASES if kind == "sft" else ("rollout", *PHASES)
    moments = [*points(rng, phases, KILLS - 3), *[("outside", 1, rng.uniform(1.0, 5.0)) for _ in range(3)]]
    rng.shuffle(moments)
    print(f"dies at {moments}")
    steps = 60
    flags = [*flags_of(kind, steps), *(f"--config.rl.{flag}" for flag in more)]
    killed_and_compared(moments, flags, steps, tmp_path)


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
