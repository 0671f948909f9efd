"""Runs that are killed, asked to stop, or out of room: they continue at their last checkpoint, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infer.load import checkpoint_steps
from store.records import METRICS, read_lines, read_metrics
from tests.train.lives import assert_same_run, complete, flags_of, start

STEPS, MORE_STEPS, EVERY, KILLS = 12, 60, 2, 10
PHASES = ("batch", "update", "save", "written", "summed", "restore", "plot")
Point = tuple[str, int, float]  # the phase, which call of it, seconds after its start
Whole = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of a run of a kind, in so many steps, that nothing happened to."""
    done: dict[tuple[str, int], Path] = {}

    def made(kind: str, steps: int) -> Path:
        if (kind, steps) not in done:
            done[kind, steps] = tmp_path_factory.mktemp("whole") / kind
            complete(*flags_of(kind, steps, EVERY), f"--workdir={done[kind, steps]}")
        return done[kind, steps]

    return made


def points(rng: random.Random, phases: tuple[str, ...], count: int) -> list[Point]:
    """`count` moments to die at, every phase before any comes again; of a rollout's calls there are few."""
    order = [phase for _ in range(count) for phase in rng.sample(phases, len(phases))][:count]
    return [
        (p, 1 if p in ("rollout", "restore", "plot") else rng.randint(1, 3), rng.choice((0, 0.03 * rng.random())))
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
        process = start("-m", "tests.train.killed", "SIGKILL", phase, str(count), str(delay), *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def killed_and_compared(moments: list[Point], kind: str, steps: int, whole: Path, folder: Path) -> None:
    """Kills a run at one moment after the other, and one more where it ends too early; each must end like `whole`."""
    flags, runs = flags_of(kind, steps, EVERY), [folder / "killed0"]
    for point in moments:
        if not life(point, [*flags, f"--workdir={runs[-1]}"]):
            runs.append(folder / f"killed{len(runs)}")
            assert life(("update", 3, 0.0), [*flags, f"--workdir={runs[-1]}"])
    for run in runs:
        complete(*flags, f"--workdir={run}")
        assert_same_run(run, whole, steps)


@pytest.mark.more
@pytest.mark.parametrize("kind", ["sft", "in use"])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    kind: str, whole: Whole, tmp_path: Path, parity_seed: int
) -> None:
    """Killed twice: in an update when there should be a checkpoint, then wherever the draw says."""
    rng = random.Random(parity_seed)
    phases = PHASES if kind == "sft" else ("rollout", *PHASES)
    moments = [("update", rng.randint(4, 8), 0.02 * rng.random()), *points(rng, phases, 1)]
    killed_and_compared(moments, kind, STEPS, whole(kind, STEPS), tmp_path)


@pytest.mark.more
@pytest.mark.skipif(not os.environ.get("SAGAX_FULL"), reason="make test-all runs it")
@pytest.mark.parametrize("kind", ["sft", "grpo", "in use"])
def test_ten_deaths_each_at_random_moments(kind: str, whole: Whole, tmp_path: Path, parity_seed: int) -> None:
    """In the batch or rollout, in the update, in every part of the save and of the restore, and by the clock."""
    rng = random.Random(parity_seed)
    phases = PHASES if kind == "sft" else ("rollout", *PHASES)
    moments = [*points(rng, phases, KILLS - 3), *[("outside", 1, rng.uniform(1.0, 5.0)) for _ in range(3)]]
    rng.shuffle(moments)
    print(f"dies at {moments}")
    killed_and_compared(moments, kind, MORE_STEPS, whole(kind, MORE_STEPS), tmp_path)


@pytest.mark.more
@pytest.mark.parametrize(
    ("steps", "phases"),
    [
        (STEPS, ("update",)),
        pytest.param(
            MORE_STEPS,
            ("batch", "rollout", "save", "written", "summed"),
            marks=pytest.mark.skipif(not os.environ.get("SAGAX_FULL"), reason="make test-all runs it"),
        ),
    ],
    ids=["update", "the rest"],
)
def test_two_signals_inside_a_step_end_it_in_order(
    steps: int, phases: tuple[str, ...], whole: Whole, tmp_path: Path
) -> None:
    """SIGTERM while a rollout, an update or a save is under way, and again at once: the next run goes on from there."""
    flags = [*flags_of("in use", steps, EVERY), f"--workdir={tmp_path}"]
    reached = 0
    for phase in phases:
        process = start("-m", "tests.train.killed", "SIGTERM", phase, "1", "0.003", *flags)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert f"SIGTERM in {phase}" in errors
        before, reached = reached, checkpoint_steps(tmp_path)[-1]
        assert before < reached < steps
        assert f"stopped at step {reached}; resume with:" in output
    assert f"resumed at step {reached} of {steps}" in complete(*flags)
    assert_same_run(tmp_path, whole("in use", steps), steps)


@pytest.mark.more
def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    steps, folder = 400, tmp_path / "run"
    command = ["-m", "train", *flags_of("sft", steps, every=0), f"--workdir={folder}"]
    process = start(*command)
    while process.poll() is None and len(read_lines(folder / METRICS)) < 3:
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


SMALL_DISK = """
mount -t tmpfs -o size={room} none {disk} || exit 9
"$@" && exit 8
[ $? = 1 ] || exit 7
ls {disk}/run/checkpoints >&2
mount -o remount,size=50m {disk} && "$@" && cp -r {disk}/run {out}
"""


def bytes_on_disk(folder: Path, page: int = 4096) -> int:
    """What the files of `folder` take of a disk in memory."""
    return sum(-(-path.stat().st_size // page) * page for path in folder.rglob("*") if path.is_file())


@pytest.mark.more
def test_a_full_disk_stops_a_save_and_costs_what_came_after_the_last_one(whole: Whole, tmp_path: Path) -> None:
    """A disk in memory with room for two checkpoints; then it is given more, and the same command goes on."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if not shutil.which("unshare") or subprocess.run([*inside, f"mount -t tmpfs none {disk}"]).returncode:
        pytest.skip("this user may not mount a disk in memory (unshare --user --mount)")
    run = whole("sft", STEPS)  # which keeps its last two checkpoints
    room = bytes_on_disk(run) + bytes_on_disk(run / "checkpoints") // 4
    script = SMALL_DISK.format(disk=disk, out=out, room=room)
    flags = [*flags_of("sft", STEPS, EVERY), f"--workdir={disk}/run"]
    process = start("-m", "train", *flags, before=(*inside, script, "sh"))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    good = max(int(line) for line in errors.splitlines() if line.isdigit())
    assert f"error: DiskFull: no room to write {disk}/run/checkpoints" in errors
    assert f"run the same command again: it continues at step {good}\n" in errors
    assert f"resumed at step {good} of {STEPS}" in output
    assert not any("-tmp" in path.name for path in (out / "checkpoints").iterdir())
    assert_same_run(out, run, STEPS)


@pytest.mark.more
def test_a_full_disk_under_the_metrics_stops_the_run_in_words(tmp_path: Path) -> None:
    """The limit on a file's size stands in for it: the same error, but for its number, and no privilege is needed."""
    flags = [*flags_of("sft", MORE_STEPS, 5), f"--workdir={tmp_path}"]
    limit = ("sh", "-c", 'ulimit -f 32 && exec "$@"', "sh")  # blocks of 512 bytes
    process = start("-m", "train", *flags, "--config.checkpoint.every=0", before=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert f"error: DiskFull: no room to write {tmp_path}/metrics.jsonl" in errors
    assert "run the same command again: it continues at its last checkpoint" in errors
    assert 0 < read_metrics(tmp_path)[-1]["step"] < MORE_STEPS, "whole lines stay, the torn one is left out"
    complete(*flags)
    assert [r["step"] for r in read_metrics(tmp_path) if "loss" in r] == list(range(1, MORE_STEPS + 1))
