"""What a run writes while it learns: metrics.jsonl, samples.jsonl, curves.png, trackers, a progress bar."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.json_files import Fields, read_json_lines, without_surrogates
from train.disk import writing

Record = dict[str, Any]
Tracker = tuple[Callable[[int, Record], None], Callable[[], None]]
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
# JSON has no such numbers; as words they survive the way there and back.
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain(value: Any) -> Any:
    """A JSON-able copy: arrays become numbers or lists, NaN and infinities the words nan, inf and -inf, and surrogates
    in texts U+FFFD, so that UTF-8 holds them.
    """
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    return without_surrogates(str(value))


def write_json(path: str | Path, obj: Any) -> None:
    """Write one JSON file so that a reader sees the old text or the new one, never a part."""
    replace_text(Path(path), json.dumps(plain(obj), indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a temporary file beside `path`, force it to the disk and rename it; the first process alone does so."""
    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # what a killed process left is written over
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(without_surrogates(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that lines never mix and only the last can be torn.

    Only a full disk takes less than the line: the rest is tried again, and that raises DiskFull. Of several processes
    the first alone writes: the others would only repeat it.
    """
    if jax.process_index():
        return
    line = (json.dumps(plain(record), ensure_ascii=False) + "\n").encode()
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        finally:
            os.close(descriptor)


def read_lines(path: Path, fields: Fields | None = None) -> list[Record]:
    """Every record of a JSON-lines file, [] if there is none; a torn last line is left out.

    Raises ValueError, with the line's number, for a broken line that is not the last, and for one without its step or
    one of the `fields`.
    """
    return read_json_lines(path, {"step": int, **(fields or {})}) if path.is_file() else []


def truncate(path: Path, done: int) -> None:
    """Drop what a run resumed after `done` updates will write again: later records, and a torn last line.

    A run that starts over (done = 0) drops everything.
    """
    if path.is_file():
        kept = [record for record in read_lines(path) if 0 < done >= record["step"]]
        replace_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def read_metrics(workdir: str | Path) -> list[Record]:
    """The records of a run's metrics.jsonl (or of that file) in order; nan and infinities are floats again.

    [] of a run that has written none yet. Raises FileNotFoundError for what is no run, and names the stages it holds.
    """
    path = Path(workdir)
    file = path / METRICS if path.is_dir() else path
    inside = sorted(str(found.parent) for found in path.glob(f"*/{METRICS}"))
    if not file.is_file() and (inside or not (path / "config.json").is_file()):
        near = f" It has stages, with metrics of their own: {', '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"there is no {file}; give the directory of a run.{near}")
    return [{key: number(value) for key, value in record.items()} for record in read_lines(file)]


def number(value: Any) -> Any:
    """The float that one of the words nan, inf and -inf stands for; anything else as it is."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


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


def is_scalar(value: Any) -> bool:
    """Whether a value can be a point of a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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


# (title, names of the metrics it shows, drawn in this order where a run has them)
PANELS = (
    ("reward", ("reward",)),
    ("accuracy", ("accuracy", "eval/accuracy")),
    ("length in tokens", ("completions/mean_length", "mean_tokens", "eval/mean_tokens")),
    ("entropy", ("entropy",)),
    ("KL to the reference", ("kl",)),
    ("loss", ("loss", "answer_loss", "eval/answer_loss")),
)
COLOURS = {False: "#4269a5", True: "#c8553d"}  # what training saw, and what evaluation found
Stage = tuple[str, int, list[Record]]


def plot_curves(workdirs: str | Path | Sequence[str | Path], path: str | Path) -> bool:
    """Draw reward, accuracy, length, entropy, KL and loss over steps into one picture, where a run has them.

    Several run directories are stages, put one after the other and named. Returns False, and draws nothing,
    when there is no curve to draw.
    """
    folders = [workdirs] if isinstance(workdirs, str | Path) else list(workdirs)
    stages = concatenate([Path(folder) for folder in folders])
    panels = [(title, drawn) for title, names in PANELS if (drawn := present(stages, names))]
    if panels:
        draw(stages, panels, Path(path))
    return bool(panels)


def concatenate(folders: Sequence[Path]) -> list[Stage]:
    """(name, steps before it, records) of every stage that wrote metrics."""
    stages, offset = list[Stage](), 0
    for folder in folders:
        if records := read_metrics(folder):
            stages.append((folder.name, offset, records))
            offset += max(record["step"] for record in records)
    return stages


def series(stage: Stage, name: str) -> tuple[list[int], list[float]]:
    """Steps, counted from the first stage's start, and finite values of one metric of a stage."""
    _, offset, records = stage
    points = [(offset + r["step"], r[name]) for r in records if is_scalar(r.get(name)) and math.isfinite(r[name])]
    return [step for step, _ in points], [value for _, value in points]


def present(stages: Sequence[Stage], names: Sequence[str]) -> list[str]:
    """The metrics among `names` that some stage has."""
    return [name for name in names if any(series(stage, name)[0] for stage in stages)]


def smooth(values: Sequence[float], share: float = 0.1) -> np.ndarray:
    """Running mean of what is finite in `share` of the series around each value; symmetric, so no curve lags."""
    reach = np.minimum(np.arange(len(values)), np.arange(len(values))[::-1])
    reach = np.minimum(reach, int(len(values) * share / 2))
    fine, middle = np.isfinite(values), np.arange(len(values))
    sums = np.cumsum(np.concatenate([[0.0], np.where(fine, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], fine]))
    within, found = (x[middle + reach + 1] - x[middle - reach] for x in (sums, counts))
    return np.where(found > 0, within / np.maximum(found, 1), np.nan)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG in one piece. Names of runs, folders and metrics are text, whatever `$` they hold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(temporary := path.with_name(f".{path.name}.{os.getpid()}")))
    os.replace(temporary, path)


def draw(stages: Sequence[Stage], panels: Sequence[tuple[str, list[str]]], path: Path) -> None:
    """Small multiples, three in a row, written as one PNG."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=140, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, names) in zip(grid, panels, strict=False):
        draw_panel(axes, stages, title, names)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def draw_panel(axes: Any, stages: Sequence[Stage], title: str, names: Sequence[str]) -> None:
    """One metric over steps: noisy training values faint under their running mean, evaluations as points."""
    shown = [stage for stage in stages if present([stage], names)]
    for stage in shown:
        for name in names:
            draw_series(axes, *series(stage, name), evaluated=name.startswith("eval/"))
    for name, offset, _ in shown if len(stages) > 1 else ():
        axes.axvline(offset, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(name, (offset, 1), (3, -2), **place, va="top", fontsize=8, color="0.4")
    if len({name.startswith("eval/") for name in names}) > 1:
        axes.legend(handles=key_lines(), fontsize=7, frameon=False, loc="best")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8, length=2)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def key_lines() -> list[Any]:
    """What the two colours mean, for a panel that has both."""
    from matplotlib.lines import Line2D

    words = {False: "training", True: "evaluation"}
    return [Line2D([], [], color=colour, label=words[evaluated]) for evaluated, colour in COLOURS.items()]


def draw_series(axes: Any, steps: Sequence[int], values: Sequence[float], evaluated: bool) -> None:
    """One stage of one metric."""
    colour = COLOURS[evaluated]
    if evaluated:
        axes.plot(steps, values, color=colour, linewidth=1.4, marker="o", markersize=3.5)
    elif steps:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.6)


class Progress:
    """How far something is; made by `progress`."""

    def __init__(self, done: int, show: Callable[[int, str], None]) -> None:
        """`show(done, caption)` is called at every change."""
        self.done, self._show = done, show

    def advance(self, caption: str = "") -> None:
        """One more is done."""
        self.update(self.done + 1, caption)

    def update(self, done: int, caption: str = "") -> None:
        """So many are done."""
        self.done = done
        self._show(done, caption)


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0, *, every: float = 10.0) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, elsewhere a line every `every` seconds; may be nested."""
    if jax.process_index():
        yield Progress(done, lambda now, caption: None)
        return
    if not sys.stdout.isatty():
        yield Progress(done, plain_display(description, total, done, every))
        return
    with rich_display() as bar:
        row = bar.add_task(description, total=total, completed=done, caption="")
        yield Progress(done, lambda now, caption: bar.update(row, completed=now, caption=caption))


def rich_display() -> Any:
    """rich's live display: description, bar, count, rate, time left, caption; gone when it is done."""
    from rich import progress as rich

    columns = ("[bold]{task.description}", rich.BarColumn(), rich.MofNCompleteColumn())
    rate = rich.TaskProgressColumn("", "", show_speed=True)
    times = (rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn())
    return rich.Progress(*columns, rate, *times, rich.TextColumn("{task.fields[caption]}"), transient=True)


def plain_display(description: str, total: int, first: int, every: float) -> Callable[[int, str], None]:
    """show(done, caption) that prints a line when `every` seconds have passed since the last one."""
    started = printed = time.monotonic()

    def show(done: int, caption: str) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= every:
            printed = now
            rate = (done - first) / max(now - started, 1e-9)
            print(plain_line(description, done, total, rate, caption), flush=True)

    return show


def plain_line(description: str, done: int, total: int, rate: float, caption: str) -> str:
    """Such as `sft 120/400 (30 %), 4.1/s, 1:08 left  reward 0.5`."""
    left = round((total - done) / rate) if rate > 0 else None
    clock = "" if left is None else f", {left // 60}:{left % 60:02d} left"
    percent = 100 * done // max(total, 1)
    return f"{description} {done}/{total} ({percent} %), {rate:.3g}/s{clock}  {caption}".rstrip()
