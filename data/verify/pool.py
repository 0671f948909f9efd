"""One way to judge answers, whatever the task: in this process, or in workers that are killed at a wall clock.

`judge_of(task)` returns a judge: `judge(examples, texts) -> list[Verdict]`. Tasks whose `verify` is exact and bounded
are judged here and now. Tasks with `isolated = True` (symbolic mathematics, code) are judged by a `Pool`: processes
started afresh, which are killed with all they started when an answer takes too long, and replaced.
"""

import math
import pickle
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

from data.sources.examples import Example
from data.verify.verdict import TIMEOUT, Verdict
from data.verify.worker_handle import WORKER, Worker

SECONDS = 10.0
SPARE = 5.0  # what a worker needs beyond the task's own limit, on a loaded machine
STARTING_SECONDS = 120.0
MEMORY = 4 << 30
MOST_FAILED_STARTS = 3
MOST_REASON = 500


class Verifies(Protocol):
    """All that a judge needs of a task."""

    def verify(self, example: Example, text: str) -> Verdict:
        """Returns the verdict on a completion."""


class Judge:
    """`judge(examples, texts)` returns one verdict for each text, in order.

    `checks`, `timeouts`, `deaths` and `errors` count the answers judged, those cut off by the wall clock, those whose
    worker died, and those whose verifier raised. A context manager; `close` may be called twice.
    """

    def __init__(self) -> None:
        """Starts all counts at 0."""
        self.checks = self.timeouts = self.deaths = self.errors = 0

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
        """Returns the verdicts; ValueError unless there is one text for each example."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Returns all counts by name, as metrics."""
        return {name: getattr(self, name) for name in ("checks", "timeouts", "deaths", "errors")}

    def close(self) -> None:
        """Gives back what the judge holds."""

    def __enter__(self) -> Self:
        """Returns the judge itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the judge."""
        self.close()


class InProcess(Judge):
    """Judges in this process, for tasks whose `verify` never raises and is bounded in time and memory."""

    def __init__(self, task: Verifies) -> None:
        """Holds the task."""
        super().__init__()
        self._task = task

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
        """Returns the verdicts; ValueError unless there is one text for each example."""
        _check_lengths(examples, texts)
        self.checks += len(texts)
        return [self._task.verify(example, text) for example, text in zip(examples, texts, strict=True)]


class Pool(Judge):
    """Judges in worker processes, each answer within `seconds` of wall-clock time.

    An answer that takes longer scores 0 with the reason "timeout", its worker is killed and replaced while the others
    go on; so is a worker that dies, with the reason "the verifier died ...". `memory`: bytes of address space for each
    worker. The task travels by pickle: its class must be importable. Calls from several threads take turns.
    """

    def __init__(self, task: Verifies, *, workers: int = 2, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        """Starts the workers; ValueError for limits that make no sense or a task that cannot be pickled."""
        super().__init__()
        if workers < 1 or not seconds > 0 or not math.isfinite(seconds):
            raise ValueError(f"a pool needs at least 1 worker and a time limit above 0, got {workers} and {seconds}")
        self._pickled, self._seconds, self._memory = _pickled(task), seconds, memory
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._queue = deque[int]()  # of the call under way: the answers that no worker holds
        self._workers = [self._start() for _ in range(workers)]

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
        """Returns the verdicts; ValueError unless there is one text for each example, RuntimeError when closed or when
        no worker can be started.
        """
        _check_lengths(examples, texts)
        with self._lock:
            if not self._workers:
                raise RuntimeError("this pool of verifiers is closed")
            try:
                return self._judge(list(zip(examples, texts, strict=True)))
            except BaseException:
                # An answer that is still being judged must not be taken for one of the next call.
                self._replace_busy()
                raise

    def wait(self) -> None:
        """Returns when every worker is ready; RuntimeError when they cannot be started."""
        with self._lock:
            while any(worker.starting for worker in self._workers):
                self._turn({})

    def close(self) -> None:
        """Kills the workers."""
        with self._lock:
            for worker in self._workers:
                worker.kill()
            self._workers = []

    def __del__(self) -> None:
        """Kills the workers of a pool that was dropped without closing it."""
        try:
            for worker in getattr(self, "_workers", []):
                worker.kill()
        except Exception:
            pass  # at the end of the interpreter half of it is gone; the kernel ends the workers then

    def _start(self) -> Worker:
        return Worker(self._pickled, self._memory, STARTING_SECONDS)

    def _judge(self, answers: Sequence[tuple[Example, str]]) -> list[Verdict]:
        self._queue, found = deque(range(len(answers))), dict[int, Verdict]()
        for worker in [worker for worker in self._workers if not worker.alive]:
            self._replace(worker)
        while len(found) < len(answers):
            # Whoever speaks without being asked will not be asked.
            for worker in [worker for worker in self._workers if worker.idle and not worker.silent]:
                self._replace(worker)
            for worker in self._workers:
                if self._queue and worker.idle:
                    number = self._queue.popleft()
                    worker.ask(number, *answers[number], seconds=self._seconds)
            self._turn(found)
        self.checks += len(answers)
        return [found[n] for n in range(len(answers))]

    def _turn(self, found: dict[int, Verdict]) -> None:
        """Waits for something to happen, and notes the verdicts that it brings."""
        poll, waiting = select.poll(), {worker.fileno(): worker for worker in self._workers if not worker.idle}
        for number, worker in waiting.items():
            poll.register(number, select.POLLIN | (select.POLLOUT if worker.unsent else 0))
        until = min(worker.deadline for worker in waiting.values())
        for number, event in poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1):
            self._on_event(waiting[number], event, found)
        for worker in self._workers:
            if not worker.idle and time.monotonic() > worker.deadline:
                self._expire(worker, found)

    def _on_event(self, worker: Worker, event: int, found: dict[int, Verdict]) -> None:
        if event & select.POLLOUT:
            worker.write()
        if not event & ~select.POLLOUT:
            return
        message = worker.read()
        if message is not None:
            self._on_message(worker, message, found)
        elif worker.ended:
            self._on_death(worker, found)

    def _on_message(self, worker: Worker, message: list[Any], found: dict[int, Verdict]) -> None:
        """Heeds a message, whose form the worker's handle has checked."""
        kind, *rest = message
        if kind == "failed":
            raise RuntimeError(f"a verifier's worker could not start: {rest[0]}")
        if kind == "ready":
            self._failed_starts = 0
            return worker.welcome()
        number = worker.release()
        if kind == "verdict":
            found[number] = _clean(*rest)
        else:
            self.errors += 1
            found[number] = Verdict(0.0, None, f"the verifier raised {rest[0]}"[:MOST_REASON])

    def _expire(self, worker: Worker, found: dict[int, Verdict]) -> None:
        if worker.starting:
            return self._on_death(worker, found)
        self.timeouts += 1
        found[worker.release()] = Verdict(0.0, None, TIMEOUT)
        self._replace(worker)

    def _on_death(self, worker: Worker, found: dict[int, Verdict]) -> None:
        how = worker.kill()
        if worker.starting:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise RuntimeError(f"verifier workers do not start ({how}): {worker.complaint() or 'no message'}")
        elif worker.broken and not worker.fresh:
            # What it said may be what an earlier answer left behind: a new worker is asked again.
            self._queue.appendleft(worker.release())
        elif not worker.idle:
            self.deaths += 1
            found[worker.release()] = Verdict(0.0, None, f"the verifier died ({how})")
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        self._workers[self._workers.index(worker)] = self._start()

    def _replace_busy(self) -> None:
        for worker in list(self._workers):
            if (not worker.idle and not worker.starting) or worker.dead:
                self._replace(worker)


def judge_of(task: Verifies, *, workers: int = 2, seconds: float | None = None, memory: int = MEMORY) -> Judge:
    """Returns the judge a task asks for: a `Pool` where the task has `isolated = True`, else one in this process.

    `workers`, `seconds` and `memory` are the pool's; without `seconds` it is SECONDS, or more where the task's own
    limit (`task.seconds`) asks for it. ValueError when the task's own limit would always be overtaken by the pool's.
    """
    if not getattr(task, "isolated", False):
        return InProcess(task)
    own = getattr(task, "seconds", 0.0)
    if seconds is None:
        seconds = max(SECONDS, own + SPARE)
    if own >= seconds:
        raise ValueError(f"the task allows an answer {own} s and the pool {seconds} s: give the pool more")
    return Pool(task, workers=workers, seconds=seconds, memory=memory)


def inside_worker() -> bool:
    """Returns whether this process is a pool's worker."""
    started = getattr(sys.modules["__main__"], "__file__", None)
    return started is not None and Path(started).resolve() == WORKER


def judge_alone(task: Verifies, example: Example, text: str) -> Verdict:
    """Returns the verdict on one answer from a pool of one worker, kept for the next answer to the same task.

    This is what an isolated task's `verify` does outside a worker, so that it is safe whoever calls it.
    """
    return _pool_of_one(cast(Hashable, task))([example], [text])[0]


@cache
def _pool_of_one(task: Any) -> Judge:
    return judge_of(task, workers=1)


def _check_lengths(examples: Sequence[Example], texts: Sequence[str]) -> None:
    if len(examples) != len(texts):
        raise ValueError(f"{len(examples)} examples and {len(texts)} texts: a judge needs one text for each example")


def _pickled(task: Verifies) -> bytes:
    if type(task).__module__ == "__main__":
        raise ValueError(f"{type(task).__name__} is defined in the main script: move it to a module workers can import")
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise ValueError(f"the task {type(task).__name__} cannot be sent to a worker: {error}") from error


def _clean(score: float, parsed: str | None, reason: str) -> Verdict:
    """Returns the verdict as a worker gave it, or one that says what is wrong with its score."""
    if not 0.0 <= score <= 1.0:
        return Verdict(0.0, None, f"the verifier gave a score that is not in 0..1: {score!r}")
    return Verdict(score, parsed, reason[:MOST_REASON])
