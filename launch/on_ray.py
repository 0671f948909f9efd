"""Runs on a Ray cluster: every run is a placement group, with one `python -m train` on each of its hosts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.needs import Needs
from launch.runs import RUNNING, WAITING, Job, Run, Submit, attend, free_port, note, peers, state_of

RETRIES = 20  # times a run begins again, from its checkpoint, because a machine was lost
PATIENCE = 2.0  # seconds between two looks at whether the sweep was stopped
GENERATIONS = {"v5e": "v5litepod"}  # as Ray calls them


@contextmanager
def on_ray(runs: Sequence[Run], parallel: int) -> Iterator[Submit]:
    """Joins the cluster of RAY_ADDRESS or of this machine; without one, starts one on this machine."""
    import ray

    joined = ray.is_initialized()
    if not joined:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)

    def submit(run: Run, slot: int) -> Job:
        return Placed(run, Path.cwd())

    try:
        yield submit
    finally:
        if not joined:
            ray.shutdown()


class Placed:
    """A run that waits for its place on the cluster, trains there, and begins again where a machine is lost.

    A thread of this process sees it through; that many are idle almost always.
    """

    def __init__(self, run: Run, root: Path) -> None:
        """Begins to wait; `root`, the repository, is at the same path on every machine."""
        self._run, self._root = run, root
        self._stopping, self._placed, self._code = threading.Event(), False, 1
        self._thread = threading.Thread(target=self._see_through, daemon=True)
        self._thread.start()

    def poll(self) -> str:
        """Where it is."""
        if self._thread.is_alive():
            return RUNNING if self._placed else WAITING
        return state_of(self._run, self._code)

    def stop(self) -> None:
        """Interrupts its tasks, which let it save."""
        self._stopping.set()

    def _see_through(self) -> None:
        try:
            for _ in range(1 + RETRIES):
                code = self._once()
                if code is not None:
                    self._code = code
                    return
                note(self._run, "a machine was lost; the run begins again from its last checkpoint")
        except Exception as error:  # whatever it is, it belongs into the log and ends this run alone
            note(self._run, f"not trained: {error}")

    def _once(self) -> int | None:
        """The exit code of one attempt, None where a machine was lost."""
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError

        with place(self._run.needs, self._stopping) as group:
            self._placed = group is not None
            if group is None:
                return 0
            try:
                return train(self._run, self._root, group, self._stopping)
            except (LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError):
                return None
            finally:
                self._placed = False


@contextmanager
def place(needs: Needs, stopping: threading.Event) -> Iterator[Any]:
    """A placement group with a bundle for each host, once the cluster has room; None when stopped before."""
    from ray.util.placement_group import placement_group, remove_placement_group

    if needs.slice and needs.hosts > 1:
        with slice_of_hosts(needs, stopping) as group:
            yield group
        return
    group = placement_group([bundle(needs)] * needs.hosts, strategy="STRICT_SPREAD")
    try:
        yield group if ready(group, stopping) else None
    finally:
        remove_placement_group(group)


@contextmanager
def slice_of_hosts(needs: Needs, stopping: threading.Event) -> Iterator[Any]:
    """All hosts of one TPU slice, bundle i on its worker i, so that processes count as the slice does."""
    from ray.util.tpu import slice_placement_group

    assert needs.slice is not None
    reserved = None
    while reserved is None and not stopping.is_set():
        try:
            reserved = slice_placement_group(
                needs.slice.topology,
                GENERATIONS.get(needs.slice.generation, needs.slice.generation),
                resources_per_bundle=bundle(needs),
                chips_per_vm=needs.slice.chips,
                strategy="STRICT_SPREAD",
                bundle_label_selector=[{"ray.io/tpu-worker-id": str(worker)} for worker in range(needs.hosts)],
                head_reservation_timeout_s=PATIENCE,
            )
        except TimeoutError:  # every such slice is taken
            continue
    if reserved is None:
        yield None
        return
    try:
        yield reserved.placement_group if ready(reserved.placement_group, stopping) else None
    finally:
        reserved.shutdown()


def ready(group: Any, stopping: threading.Event) -> bool:
    """Waits for a placement group; False when the sweep is stopped first."""
    while not stopping.is_set():
        if group.wait(PATIENCE):
            return True
    return False


def bundle(needs: Needs) -> dict[str, float]:
    """What is set aside on one host, by Ray's names."""
    resources = {"CPU": float(needs.cpus), "GPU": float(needs.gpus), "memory": needs.memory_gb * 2**30}
    resources["TPU"] = float(needs.slice.chips) if needs.slice else 0.0
    return {name: amount for name, amount in resources.items() if amount}


def train(run: Run, root: Path, group: Any, stopping: threading.Event) -> int:
    """Trains on all hosts of a placement group; the first exit code that is not 0 ends the others."""
    import ray

    def remote(function: Callable[..., Any], host: int, **needs: Any) -> Any:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, host)
        # Tasks are not begun again by themselves: all processes of a run have to, together.
        return ray.remote(function).options(scheduling_strategy=strategy, max_retries=0, **needs)

    takes = bundle(run.needs)
    amounts = {"num_cpus": takes.pop("CPU"), "num_gpus": takes.pop("GPU", 0), "memory": takes.pop("memory", None)}
    hosts = run.needs.hosts
    address = ray.get(remote(address_here, 0, num_cpus=0).remote()) if hosts > 1 else ""
    tasks = [
        remote(attend, host, **amounts, resources=takes).remote(run, peers(address, hosts, host), root, host)
        for host in range(hosts)
    ]
    return watch(tasks, stopping)


def watch(tasks: Sequence[Any], stopping: threading.Event) -> int:
    """The first exit code that is not 0, once all tasks have ended; then and when stopped, the rest are interrupted."""
    import ray

    left, codes, interrupted = list(tasks), [0], False
    try:
        while left:
            ended, left = ray.wait(left, timeout=PATIENCE / 4)
            codes += [exit_code(task) for task in ended]
            if (stopping.is_set() or any(codes)) and not interrupted:
                interrupted = True
                interrupt(left)
    finally:
        interrupt(left)
        ray.wait(left, num_returns=len(left)) if left else None
    return next(filter(None, codes), 0)


def interrupt(tasks: Sequence[Any]) -> None:
    """Raises KeyboardInterrupt in tasks."""
    import ray

    for task in tasks:
        ray.cancel(task, force=False)


def exit_code(task: Any) -> int:
    """What `attend` returned; a task that was cancelled before it began did no harm."""
    import ray

    try:
        return int(ray.get(task))
    except ray.exceptions.TaskCancelledError:
        return 0


def address_here() -> str:
    """Where the first process of a run can be found."""
    import ray

    return f"{ray.util.get_node_ip_address()}:{free_port()}"
