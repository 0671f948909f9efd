"""Orbax checkpoints: parameters, the rest of the state, and the source's position, as separate items of one step.

A step's folder gets its name only when it is complete and holds the sums of its files (store/manifest.py), so that a
process killed at any moment leaves a whole checkpoint, or none. What is damaged later is moved aside, never deleted.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.path import atomicity, atomicity_types

from store.disk import DiskFull, is_full, room
from store.json_files import fault
from store.manifest import FOLDER, METADATA, checkpoint_steps, damage, newest_whole, write_sums
from store.objects import absolute, flush, is_object, move, place
from store.processes import agreed

ARRAYS = "arrays_"  # before the names of what a source keeps besides its position
DAMAGED = "damaged"  # the folder, in the run's, of checkpoints that were moved aside


class Saved(Protocol):
    """What a checkpoint holds: `step`, and trees of arrays by name, parameters apart, so that inference reads no
    optimiser.
    """

    @property
    def step(self) -> Any:
        """How many updates were made."""

    def trees(self) -> dict[str, Any]:
        """The trees by name."""

    def with_trees(self, trees: dict[str, Any]) -> Self:
        """The same with other trees under those names."""


S = TypeVar("S", bound=Saved)


class Summed(atomicity.AtomicRenameTemporaryPath):
    """A step's folder under its temporary name: once all processes have written, it is summed, then renamed."""

    async def finalize(self) -> None:
        """Runs in the first process alone, in the save's thread, and for the items inside, which need no list."""
        if atomicity_types.TMP_DIR_SUFFIX not in self.get().parent.name:
            await asyncio.to_thread(write_sums, Path(self.get()))
        await super().finalize()


class SummedObjects(atomicity.CommitFileTemporaryPath):
    """The same in a bucket, where commit_success.txt takes the place of the name: it is written after the sums."""

    async def finalize(self) -> None:
        """Runs in the first process alone, in the save's thread, and for the items inside, which need no list."""
        if self.get().parent.name == FOLDER:
            await asyncio.to_thread(write_sums, place(self.get()))
        await super().finalize()


class Checkpoints:
    """Saves asynchronously, keeps the last and the best, and cleans up what a killed process left half written."""

    def __init__(
        self, workdir: Path, keep_last: int = 2, keep_best: int = 1, say: Callable[[str], None] = print
    ) -> None:
        """Opens (and creates) `workdir/checkpoints`; the best has the highest accuracy or, without any, lowest loss.

        Newer checkpoints than the last whole one are moved to `workdir/damaged`, and `say` is told. Raises
        RuntimeError, and changes nothing, when there are checkpoints and none is whole.
        """
        keep: list[Any] = [policies.LatestN(max(keep_last, 1))]
        if keep_best:
            keep.append(policies.BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=rank,  # metrics are written into a checkpoint only with it: a resumed run knows its best one
            cleanup_tmp_directories=True,
            create=True,
            temporary_path_class=SummedObjects if is_object(workdir) else Summed,
        )
        self._say, self._workdir = say, place(workdir)
        self.folder = absolute(self._workdir / FOLDER)
        step_back(self._workdir, say)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def metrics(self, step: int) -> dict[str, float] | None:
        """What was measured at a checkpoint's step before it was saved, None where nothing was."""
        return self._manager.metrics(step)

    def save(
        self,
        state: Saved,
        source: dict[str, Any],
        metrics: dict[str, float] | None = None,
        arrays: dict[str, Any] | None = None,
    ) -> None:
        """Starts saving; returns once the arrays are copied, and a later call or `close` waits for the write.

        `source`: its position, JSON-able; `arrays`: what it keeps besides, trees by name. Raises DiskFull when there is
        no room, for this checkpoint or the one before it.
        """
        step = int(state.step)
        if step == self.latest():
            return
        trees = state.trees() | {ARRAYS + name: tree for name, tree in (arrays or {}).items()}
        self._measure(step, trees)
        flush(self._workdir)  # no checkpoint before the lines that it stands for
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._saving():
            self._manager.save(
                step, args=ocp.args.Composite(**items, source=ocp.args.JsonSave(source)), metrics=metrics
            )

    def check(self) -> None:
        """Raises what went wrong in a save that has ended; waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, like: S, arrays: dict[str, Any] | None = None) -> tuple[S, dict[str, Any], dict[str, Any]]:
        """The latest state, the source's position, and the arrays that it kept.

        States have the shapes and shardings of `like`, arrays those of `arrays` where that names them, else of what was
        saved. Raises RuntimeError that names the step when it cannot be read.
        """
        step = self.latest()
        advice = f"move {self.folder / str(step)} away to continue from the one before it"
        trees = like.trees() | {ARRAYS + name: tree for name, tree in (arrays or {}).items()}
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in trees.items()}
        kept = [path.name for path in (self.folder / str(step)).glob(f"{ARRAYS}*")]
        names = [*like.trees(), *kept]
        items = {name: ocp.args.StandardRestore(abstract.get(name)) for name in names}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items, source=ocp.args.JsonRestore()))
        except Exception as error:
            raise RuntimeError(
                f"checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}: {str(error)[:300]});"
                f" {advice}"
            ) from error
        if wrong := fault(restored["source"], {}):
            raise RuntimeError(f"{self.folder / str(step) / 'source'} cannot be used: {wrong}; {advice}")
        state = like.with_trees({name: restored[name] for name in like.trees()})
        return state, restored["source"], {name.removeprefix(ARRAYS): restored[name] for name in kept}

    def wait(self) -> None:
        """Waits for the write in progress; raises what went wrong in it."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the write in progress, and ends the threads."""
        self.wait()
        self._manager.close()

    def _measure(self, step: int, trees: dict[str, Any]) -> None:
        """Says it when a checkpoint may not fit; compression, which saves little, is not counted on."""
        if jax.process_index() or is_object(self.folder):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees) if hasattr(leaf, "nbytes"))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            self._say(f"checkpoint {step} needs about {room(needed)}, {self.folder} has {room(free)} free")

    @contextmanager
    def _saving(self) -> Any:
        """A save that fails for want of room becomes DiskFull, with where the run will continue."""
        try:
            yield
        except Exception as error:
            if not is_full(error) or is_object(self.folder):
                raise
            good = newest_whole(self._workdir)[0]
            where = "starts over: there is no checkpoint yet" if good is None else f"continues at step {good}"
            raise DiskFull(self.folder, where) from error


def rank(metrics: dict[str, float]) -> float:
    """What the best checkpoint has most of: the accuracy or, where none was measured, minus the loss."""
    return metrics.get("accuracy", -metrics.get("answer_loss", float("inf")))


def step_back(workdir: Path, say: Callable[[str], None]) -> None:
    """Moves checkpoints that are newer than the last whole one to `workdir/damaged`.

    The first process does so, the others wait. Raises RuntimeError when checkpoints are there and none is whole.
    """
    steps = checkpoint_steps(workdir)
    wrong = _look(workdir) if jax.process_index() == 0 else {}
    lost = bool(agreed(bool(steps) and set(wrong) == set(steps)))
    if lost:
        first = next(iter(wrong.values()), "see the first process")
        raise RuntimeError(
            f"no checkpoint of {workdir} is whole (steps {steps}): {first}. Nothing was changed. Put a copy of a"
            " checkpoint back there, or choose another --workdir to start again"
        )
    for step, what in wrong.items():
        aside = _aside(workdir / DAMAGED / str(step))
        aside.parent.mkdir(exist_ok=True)
        move(workdir / FOLDER / str(step), aside)
        say(f"checkpoint {step} is damaged: {what}. It was moved to {aside}")
    agreed(True)


def _look(workdir: Path) -> dict[int, str]:
    """What is wrong with which checkpoint: of older ones than the last whole one, only what is read when opening."""
    whole, wrong = newest_whole(workdir)
    older = [step for step in checkpoint_steps(workdir) if whole is not None and step < whole]
    problems = {step: damage(workdir, step, METADATA) for step in older}
    return wrong | {step: what for step, what in problems.items() if what}


def _aside(path: Path) -> Path:
    """`path`, or with a number behind it where that is taken."""
    names = (path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 1000)))
    return next(name for name in names if not name.exists())
