"""Runs as Slurm jobs (submitit): one task per node, saved and put back into the queue before time is up."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.runs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Run, Submit, ended, hear_interrupts, peers, start

FOLDER = ".slurm"  # in the sweep's directory: what submitit keeps of its jobs
STOP = "stop"  # in a run's folder there: the sweep wants it to end, and not to come back
GRACE = 120  # seconds before its end in which a job saves
TIMES = 1000  # a run is put back into the queue, at most
GLANCE = 5.0  # seconds for which an answer of squeue holds
PORTS = 2**12  # at the end of the range; a job takes the one of its number


@contextmanager
def on_slurm(runs: Sequence[Run], parallel: int, cluster: str = "slurm") -> Iterator[Submit]:
    """Hands runs to `cluster`, a name of submitit's; a run that is still in Slurm's queue is taken up again."""
    import submitit

    queue: Queue = Squeue() if cluster == "slurm" else Beside()
    hear_interrupts()  # by which submitit stops jobs of this machine

    def submit(run: Run, slot: int) -> Job:
        folder = run.beside.absolute() / FOLDER / run.name
        (folder / STOP).unlink(missing_ok=True)
        if known := queue.known(folder):
            return Queued(run, submitit.SlurmJob(folder, known), queue)
        executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMES})
        executor.update_parameters(**parameters(run))
        return Queued(run, executor.submit(Training(run, Path.cwd(), folder)), queue)

    yield submit


def parameters(run: Run) -> dict[str, Any]:
    """A run's needs by submitit's names; `launch.options` are flags of sbatch, such as account or constraint."""
    needs = run.needs
    found: dict[str, Any] = {
        "name": run.name,
        "nodes": needs.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": needs.cpus,
        "timeout_min": math.ceil(60 * needs.hours),
        "slurm_signal_delay_s": GRACE,
        # Since Slurm 22.05 a step does not inherit the first; a process that fails ends those it trains with.
        "slurm_srun_args": [f"--cpus-per-task={needs.cpus}", "--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, **needs.options},
    }
    found |= {"gpus_per_node": needs.gpus} if needs.gpus else {}
    found |= {"mem_gb": needs.memory_gb} if needs.memory_gb else {}
    return found | ({"slurm_partition": needs.partition} if needs.partition else {})


@dataclass
class Training:
    """What a job does on each of its nodes, and how it saves itself before its time is up."""

    run: Run
    root: Path
    folder: Path

    def __call__(self) -> int:
        """Trains; returns 0, or raises RuntimeError for another exit code."""
        import submitit

        here = submitit.JobEnvironment()
        port = 2**16 - PORTS + int(here.raw_job_id) % PORTS
        environment = peers(f"{here.hostnames[0]}:{port}", here.num_tasks, here.global_rank)
        if environment and self.run.needs.gpus:  # by Slurm's variables JAX would give each process a single one
            environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(self.run.needs.gpus)))
        with ignored(here._usr_sig()):
            self.process = start(self.run, environment, self.root, here.global_rank)
        code = ended(self.process)
        if code:
            raise RuntimeError(f"the run ended with exit code {code}; its log is {self.run.log}")
        saved = not self.run.complete and not (self.folder / STOP).exists()
        if saved and here.cluster == "slurm" and here.global_rank == 0:
            # Slurm is about to take the node away, and does not queue a job again that has ended by itself.
            time.sleep(GRACE)
        return 0

    def checkpoint(self) -> Any:
        """Lets the run save on all its nodes, and asks to be called again."""
        import submitit

        here = submitit.JobEnvironment()
        if here.num_tasks > 1:
            with ignored(signal.SIGTERM):  # scancel runs inside of the job, too
                subprocess.run(["scancel", "--signal=TERM", here.job_id], check=True)
        else:
            self.process.terminate()
        with suppress(ChildProcessError):  # not `wait`: this is a signal's handler, which may have interrupted that one
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self.run, self.root, self.folder))


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Processes started within ignore this signal: Slurm sends it to all of a job, and only one knows what it means."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


class Queue(Protocol):
    """Where jobs are, and how they are stopped."""

    def state(self, job: Any, since: float) -> str | None:
        """WAITING, RUNNING, or None of a job that is gone; `since` it exists."""

    def stop(self, job: Any) -> None:
        """Lets a job save and ends it."""

    def known(self, folder: Path) -> str:
        """The number of a job of this folder that is still there, or nothing."""


@dataclass
class Squeue:
    """A Slurm cluster, asked by `squeue`: unlike `sacct` it needs no data base."""

    asked: float = -math.inf
    states: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Asks again when the last answer is old; no answer changes nothing."""
        if time.monotonic() - self.asked > GLANCE:
            asked = time.monotonic()
            answer = subprocess.run(["squeue", "--me", "--noheader", "--format=%A %T"], capture_output=True, text=True)
            if answer.returncode == 0:
                lines = (line.split() for line in answer.stdout.splitlines())
                self.asked, self.states = asked, {line[0]: line[1] for line in lines if len(line) == 2}

    def state(self, job: Any, since: float) -> str | None:
        """By squeue."""
        self.look()
        state = self.states.get(job.job_id)
        if state is None:
            return WAITING if self.asked <= since else None
        return RUNNING if state in ("RUNNING", "COMPLETING") else WAITING

    def stop(self, job: Any) -> None:
        """Out of the queue, or SIGTERM to all its processes."""
        (Path(job.paths.folder) / STOP).touch()
        subprocess.run(["scancel", "--state=PENDING", job.job_id], check=False, capture_output=True)
        subprocess.run(["scancel", "--signal=TERM", job.job_id], check=False, capture_output=True)

    def known(self, folder: Path) -> str:
        """Whether squeue has a job that was handed in from this folder."""
        self.look()
        numbers = [path.name.partition("_")[0] for path in folder.glob("*_submitted.pkl")]
        return next((number for number in numbers if number in self.states), "")


class Beside:
    """Processes of this machine that submitit starts where there is no Slurm."""

    def state(self, job: Any, since: float) -> str | None:
        """By its process."""
        return None if job.done() else RUNNING

    def stop(self, job: Any) -> None:
        """KeyboardInterrupt."""
        job.cancel()

    def known(self, folder: Path) -> str:
        """They do not outlive the sweep."""
        return ""


@dataclass
class Queued:
    """A run in a queue."""

    run: Run
    job: Any
    queue: Queue
    since: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def poll(self) -> str:
        """Where it is: once it is gone, its directory tells whether it is done."""
        state = self.queue.state(self.job, self.since)
        return state or (DONE if self.run.complete else STOPPED if self.stopped else FAILED)

    def stop(self) -> None:
        """Lets it save and takes it out of the queue."""
        self.stopped = True
        self.queue.stop(self.job)
