"""Sweeps through submitit, by its executor for machines without Slurm; and what Slurm itself would be told."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launch import on_slurm as module
from launch.needs import Needs
from launch.on_slurm import Queued, Squeue, on_slurm, parameters
from launch.runs import DONE, FAILED, RUNNING, STOPPED, WAITING
from tests.launch.dummies import FINISH, dummy, states

submitit = pytest.importorskip("submitit", reason="pip install 'sagax[slurm]' to start sweeps under Slurm")

ROOT = Path(__file__).parents[2]
beside = functools.partial(on_slurm, cluster="local")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository as the current folder: jobs import `launch` from there."""
    monkeypatch.chdir(ROOT)


def test_runs_go_side_by_side_and_report_their_states(tmp_path: Path) -> None:
    scripts = [FINISH, "sys.exit(3)", "print('no result')"]
    runs = [dummy(tmp_path, f"run{number}", script) for number, script in enumerate(scripts)]
    seen = states(beside, runs, len(runs))
    assert [found[-1] for found in seen.values()] == [DONE, FAILED, FAILED]
    assert seen["run0"][0] == RUNNING
    assert runs[2].log.read_text() == "no result\n"


def when(path: Path, number: int, mark: str) -> None:
    """Sends this signal to a job's process, whose number a run has left at `path`, once the run has left `mark`."""

    def send() -> None:
        while not (path / mark).exists():
            time.sleep(0.01)
        os.kill(int((path / "job").read_text()), number)

    threading.Thread(target=send, daemon=True).start()


def interrupted(folder: Path) -> str:
    """A script that saves when it is asked to, and finishes when it is begun again."""
    save = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(folder / 'saved')!r}, 'w'), sys.exit(0)))"
    tell = f"pathlib.Path({str(folder / 'job')!r}).write_text(str(os.getppid()))"
    wait = f"{save}; {tell}; open({str(folder / 'ready')!r}, 'w'); time.sleep(120)"
    return f"exec({wait!r}) if not pathlib.Path({str(folder / 'saved')!r}).exists() else exec({FINISH!r})"


def test_a_job_whose_time_is_up_saves_and_goes_on_later(tmp_path: Path) -> None:
    run = dummy(tmp_path, "a", interrupted(tmp_path))
    when(tmp_path, signal.SIGUSR2, "ready")
    assert states(beside, [run], 1)["a"][-1] == DONE
    assert (tmp_path / "saved").exists()


def test_a_stopped_sweep_lets_its_runs_save_first(tmp_path: Path) -> None:
    run = dummy(tmp_path, "a", interrupted(tmp_path))

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert states(beside, [run], 1)["a"] == [RUNNING, STOPPED]
    for _ in range(1000):
        if (tmp_path / "saved").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the run was not told to save")


def unsent(folder: Path) -> Any:
    """An executor for Slurm on a machine that has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 2)
        return submitit.AutoExecutor(folder, cluster="slurm")


def test_a_job_is_given_what_its_run_needs(tmp_path: Path) -> None:
    needs = Needs(cpus=8, gpus=4, nodes=2, memory_gb=64, hours=1.5, partition="a100", options={"account": "me"})
    executor = unsent(tmp_path)
    executor.update_parameters(**parameters(dummy(tmp_path, "a", "", needs)))
    script = executor._executor._make_submission_file_text("x", "0")
    for line in (
        "--job-name=a",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--mem=64GB",
        "--time=90",
        "--partition=a100",
        "--account=me",
        "--requeue",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "srun --unbuffered" in script and "--cpus-per-task=8 --kill-on-bad-exit=1 x" in script


class Slurm:
    """Answers in the place of Slurm's commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is in the queue."""
        self.lines, self.code, self.commands = "", 0, list[str]()
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(module, "GLANCE", -1.0)

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """squeue's lines; other commands are noted."""
        if command[0] != "squeue":
            self.commands.append(" ".join(command))
        return subprocess.CompletedProcess(command, self.code, stdout=self.lines)


def test_the_queue_tells_where_a_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, run = Slurm(monkeypatch), dummy(tmp_path, "a", "")
    job = Queued(run, submitit.SlurmJob(tmp_path, "7"), Squeue())
    seen = []
    for slurm.lines, slurm.code in (("7 PENDING\n", 0), ("7 RUNNING\n8 PENDING\n", 0), ("", 1), ("7 PENDING\n", 0)):
        seen.append(job.poll())
    assert seen == [WAITING, RUNNING, RUNNING, WAITING], "no answer changes nothing; a job may queue again"
    slurm.lines = "8 PENDING\n"
    assert job.poll() == FAILED
    run.folder.mkdir()
    (run.folder / "result.json").touch()
    assert job.poll() == DONE


def test_a_job_that_waits_is_taken_out_and_one_that_runs_may_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(monkeypatch)
    job = Queued(dummy(tmp_path, "a", ""), submitit.SlurmJob(tmp_path, "7"), Squeue())
    job.stop()
    assert slurm.commands == ["scancel --state=PENDING 7", "scancel --signal=TERM 7"]
    assert (tmp_path / "stop").exists(), "the job does not wait to be queued again"
    assert job.poll() == STOPPED


def test_a_job_that_is_still_in_the_queue_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, run = Slurm(monkeypatch), dummy(tmp_path, "a", "")
    folder = tmp_path / ".slurm" / "a"
    folder.mkdir(parents=True)
    for number in (6, 7):
        (folder / f"{number}_submitted.pkl").touch()
    slurm.lines = "7 RUNNING\n"
    with on_slurm([run], 1) as submit:
        job = submit(run, 0)
    assert isinstance(job, Queued) and job.job.job_id == "7"
    assert job.poll() == RUNNING
