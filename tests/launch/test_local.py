"""One machine's devices, shared out among runs side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local as module
from launch.local import CPU, GPU, TPU, found_devices, local, shares, visible
from launch.needs import Needs
from tests.launch.dummies import FINISH, dummy, gone, states

ROOT = Path(__file__).parents[2]


def machine(folder: Path, *files: str) -> Path:
    """A folder in the place of /dev."""
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "environment", "found"),
    [
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), {}, (GPU, ["0", "1"])),
        (("nvidia0", "nvidia1"), {"CUDA_VISIBLE_DEVICES": "5,7"}, (GPU, ["5", "7"])),
        (("nvidia0", "nvidia1"), {"JAX_PLATFORMS": "cuda,cpu"}, (GPU, ["0", "1"])),
        (("accel0", "accel1", "accel2", "accel3"), {}, (TPU, ["0", "1", "2", "3"])),
        (("vfio/0", "vfio/1", "vfio/vfio"), {}, (TPU, ["0", "1"])),
        (("vfio/0", "vfio/1"), {"TPU_VISIBLE_CHIPS": "1"}, (TPU, ["1"])),
    ],
)
def test_devices_are_found_by_their_files(
    files: tuple[str, ...], environment: dict[str, str], found: tuple[str, list[str]], tmp_path: Path
) -> None:
    assert found_devices(environment, machine(tmp_path, *files)) == found


@pytest.mark.parametrize("environment", [{"CUDA_VISIBLE_DEVICES": ""}, {"JAX_PLATFORMS": "cpu"}])
def test_devices_that_are_not_wanted_leave_the_cores(environment: dict[str, str], tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert found_devices(environment, machine(tmp_path, "nvidia0")) == (CPU, [str(core) for core in cores])


def test_shares_are_equal_and_disjoint() -> None:
    assert shares(GPU, list("01234567"), 4) == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"]]
    assert shares(CPU, list("01234"), 2) == [["0", "1"], ["2", "3"]]
    assert shares(CPU, list("01"), 3) == [["0"], ["1"], ["0"]], "cores may be shared"


@pytest.mark.parametrize(
    ("kind", "devices", "parallel", "words"),
    [
        (GPU, "01", 3, "--parallel=3 is more than the 2 GPUs of this machine; --parallel=2, or JAX_PLATFORMS=cpu"),
        (TPU, "012345", 2, "a run cannot have 3 of 6 TPU chips"),
    ],
)
def test_what_does_not_go_round_is_refused(kind: str, devices: str, parallel: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shares(kind, list(devices), parallel)


def test_a_process_is_shown_its_devices_alone() -> None:
    assert visible(GPU, ["2", "3"]) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert visible(TPU, ["3"]) == {
        "TPU_VISIBLE_CHIPS": "3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_HOST_BOUNDS": "1,1,1",
    }
    assert visible(TPU, ["0", "1", "2", "3"])["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert visible(CPU, ["0"]) == {}


def logs(folder: Path, kind: str, devices: list[str], parallel: int, script: str) -> list[str]:
    """What three runs print on a machine with these devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "found_devices", lambda environment: (kind, devices))
        runs = [dummy(folder, f"run{number}", f"{script}; {FINISH}") for number in range(3)]
        assert all(seen[-1] == "done" for seen in states(local, runs, parallel).values())
    return [run.log.read_text().strip() for run in runs]


def test_runs_side_by_side_have_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    script = "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    side_by_side = logs(tmp_path / "two", GPU, ["0", "1", "2", "3"], 2, script)
    assert sorted(side_by_side[:2]) == ["0,1", "2,3"] and side_by_side[2] in ("0,1", "2,3")
    assert logs(tmp_path / "one", GPU, ["0", "1", "2", "3"], 1, script) == ["0,1,2,3"] * 3


def test_runs_side_by_side_have_their_own_cores(tmp_path: Path) -> None:
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    found = logs(tmp_path, CPU, cores, len(cores), "print(*os.sched_getaffinity(0))")
    assert set(found) == set(cores[:3])
    assert sorted(os.sched_getaffinity(0)) == [int(core) for core in cores], "the sweep itself keeps all"


def test_a_sweep_takes_no_device_itself(tmp_path: Path) -> None:
    # JAX would fail at once: there is no such platform.
    command = [sys.executable, "-m", "launch.sweep", "--config=tests/launch/sweep_config.py", "--dry_run"]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    subprocess.run([*command, f"--workdir={tmp_path / 'runs'}"], cwd=ROOT, env=environment, check=True)


def test_a_run_that_wants_more_gpus_than_its_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "found_devices", lambda environment: (GPU, ["0", "1", "2", "3"]))
    runs = [dummy(tmp_path, "wide", FINISH, Needs(gpus=4))]
    assert states(local, runs, 1)["wide"][-1] == "done"
    with pytest.raises(ValueError, match="wide needs 4 GPUs; --parallel=2 leaves 2"):
        states(local, runs, 2)


def test_runs_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    wait = f"open({str(tmp_path / 'ready')!r}, 'w').write(str(os.getpid())); time.sleep(120)"
    imports = "from pathlib import Path; from launch.local import local; from tests.launch.dummies import dummy, states"
    sweep = f"{imports}; states(local, [dummy(Path({str(tmp_path)!r}), 'a', {wait!r})], 1)"
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=ROOT)
    while not (tmp_path / "ready").exists() or not (tmp_path / "ready").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert gone(int((tmp_path / "ready").read_text()))
