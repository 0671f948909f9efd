"""What a run writes while it learns: metrics.jsonl, samples.jsonl, and TensorBoard or W&B where asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from store.records import METRICS, SAMPLES, Record, append_line, is_scalar, number, plain, truncate

Tracker = tuple[Callable[[int, Record], None], Callable[[], None]]


class MetricsWriter:
    """Appends to metrics.jsonl, and to TensorBoard or W&B where asked for.

    A run resumed after `done` updates drops later lines first, so that no step stands there twice. Raises
    ValueError when a tracker is asked for whose package is missing.
    """

    def __init__(
        self,
        workdir: str | Path,
        done: int = 0,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        name: str = "",
    ) -> None:
        """Opens the trackers; `name` is the run's in W&B, by default its directory's."""
        self._path = Path(workdir) / METRICS
        self._path.parent.mkdir(parents=True, exist_ok=True)
        wanted = ((tensorboard, open_tensorboard), (wandb, open_wandb))
        self._trackers = [open_(Path(workdir), name) for asked, open_ in wanted if asked]
        truncate(self._path, done)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line {"step": step, **metrics}; device arrays are fetched here."""
        record = plain(metrics)
        append_line(self._path, {"step": int(step), **record})
        scalars = {key: number(value) for key, value in record.items() if is_scalar(number(value))}
        for log, _ in self._trackers:
            log(int(step), scalars)

    def close(self) -> None:
        """Flush and close the trackers."""
        for _, close in self._trackers:
            close()


class SamplesWriter:
    """Appends what the model wrote to samples.jsonl, resumed like `MetricsWriter`."""

    def __init__(self, workdir: str | Path, done: int = 0) -> None:
        """Drops what a run resumed after `done` updates will write again."""
        self._path = Path(workdir) / SAMPLES
        self._path.parent.mkdir(parents=True, exist_ok=True)
        truncate(self._path, done)

    def write(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append one line {"step": step, **sample} per sample."""
        for sample in samples:
            append_line(self._path, {"step": int(step), **sample})

    def close(self) -> None:
        """Make sure that the file is there, even without a sample."""
        self._path.touch()


def optional(module: str) -> Any:
    """An optional tracker's module; ValueError naming the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module} was asked for but is not installed: pip install 'sagax[track]', or switch it off"
        ) from error


def open_tensorboard(workdir: Path, name: str) -> Tracker:
    """(write, close) of a TensorBoard event file in `workdir`/tensorboard."""
    writer = optional("tensorboardX").SummaryWriter(str(workdir / "tensorboard"))

    def write(step: int, scalars: Record) -> None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, step)

    return write, writer.close


def open_wandb(workdir: Path, name: str) -> Tracker:
    """(write, close) of a W&B run."""
    run = optional("wandb").init(dir=str(workdir), name=name or workdir.name, project="sagax")
    return lambda step, scalars: run.log(scalars, step=step), run.finish
