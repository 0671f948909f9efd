"""Orbax checkpoints: parameters, the rest of the state, and the source's position, as separate items of one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from train.state import TrainState

FOLDER = "checkpoints"
HELD = "held_"  # before the names of what a source keeps


class Checkpoints:
    """Saves asynchronously, keeps the last and the best, and cleans up what a killed process left half written."""

    def __init__(self, workdir: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        """Opens (and creates) `workdir/checkpoints`; the best has the highest accuracy or, without any, lowest loss."""
        keep: list[Any] = [policies.LatestN(max(keep_last, 1))]
        if keep_best:
            best = policies.BestN(
                get_metric_fn=lambda m: m.get("accuracy", -m.get("answer_loss", float("inf"))),
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keep.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            create=True,
        )
        self.folder = (Path(workdir) / FOLDER).absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        source: dict[str, Any],
        metrics: dict[str, float] | None = None,
        held: dict[str, Any] | None = None,
    ) -> None:
        """Starts saving; returns once the arrays are copied, and a later call or `close` waits for the write.

        `source`: its position, JSON-able; `held`: arrays that it keeps besides.
        """
        step = int(state.step)
        if step == self.latest():
            return
        trees = _items(state) | {HELD + name: tree for name, tree in (held or {}).items()}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(
            step, args=ocp.args.Composite(**items, source=ocp.args.JsonSave(source)), metrics=metrics or None
        )

    def restore(
        self, like: TrainState, held: dict[str, Any] | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """The latest state, the source's position, and the arrays that it kept.

        States have the shapes and shardings of `like`, arrays those of `held` where that names them, else of what was
        saved. Raises RuntimeError that names the damaged step when it cannot be read.
        """
        step = self.latest()
        trees = _items(like) | {HELD + name: tree for name, tree in (held or {}).items()}
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in trees.items()}
        kept = [path.name for path in (self.folder / str(step)).glob(f"{HELD}*")]
        names = [*_items(like), *kept]
        items = {name: ocp.args.StandardRestore(abstract.get(name)) for name in names}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items, source=ocp.args.JsonRestore()))
        except Exception as error:
            raise RuntimeError(
                f"checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}: {str(error)[:300]});"
                " move that folder away to continue from the one before it"
            ) from error
        state = replace(
            like, params=found["params"], ema=found["ema"] if like.ema is not None else None, **found["rest"]
        )
        return state, found["source"], {name.removeprefix(HELD): found[name] for name in kept}

    def close(self) -> None:
        """Waits for the write in progress."""
        self._manager.wait_until_finished()
        self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
    """Parameters apart from the rest, so that inference reads no optimiser."""
    rest = {name: getattr(state, name) for name in ("step", "optimizer", "bad", "skipped", "seed", "rows")}
    averaged = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "rest": rest, **averaged}
