"""Captured arrays of a whole data set, written to a folder shard by shard.

python -m analysis.captures --run=runs/quickstart --names residual --rows=256 --output=captures

A folder holds `captures.json` (names, shapes, rows) and shards `00000.npz`, each with every array of some rows. Memory
is bounded by one shard, whatever the number of rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.batch import TokenRows
from data.sources.packing import pad_row
from data.sources.text import sft_tokens
from data.tasks.base import examples_of
from infer.feedback import feedback_of
from infer.load import Loaded, load_run
from model.hooks import LAYER_POINTS, MODEL_POINTS
from model.latent import Columns, think
from model.lm import Model, Params
from settings.data import SoftConfig
from train.cli import guarded
from train.progress import progress

INDEX = "captures.json"
SHARD_BYTES = 2**28
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Captures:
    """What a folder of captures holds: the shape of one row by array, and how many rows are in each shard."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    shards: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.shards)

    def batches(self) -> Iterator[Arrays]:
        """The arrays [rows of a shard, ...] of each shard in order."""
        for number in range(len(self.shards)):
            with np.load(_shard(self.folder, number)) as arrays:
                yield {name: arrays[name] for name in self.shapes}

    def read(self, name: str) -> np.ndarray:
        """One array of all rows, [rows, ...]; raises ValueError for a name that is not there."""
        if name not in self.shapes:
            raise ValueError(f"{self.folder} has no {name!r}; it has {', '.join(self.shapes)}")
        return np.concatenate([shard[name] for shard in self.batches()])


def open_captures(folder: str | Path) -> Captures:
    """The captures in a folder; raises FileNotFoundError where none were written, or not to the end."""
    index = Path(folder) / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{folder} holds no {INDEX}: no captures were written there, or not to the end")
    written = json.loads(index.read_text())
    shapes = {name: tuple(shape) for name, shape in written["shapes"].items()}
    return Captures(Path(folder), shapes, tuple(written["shards"]))


def write_captures(
    model: Model,
    params: Params,
    batches: Iterable[TokenRows],
    names: Sequence[str],
    folder: str | Path,
    *,
    total: int = 0,
    shard_bytes: int = SHARD_BYTES,
    soft: SoftConfig | None = None,
) -> Captures:
    """Captures `names` over all batches, with `tokens`, `segments` and `mask` of the rows beside them.

    Arrays are named `residual/3`, or as they are where they belong to no layer; rows come first, the iterations of a
    core second. `total` batches are what the progress shows; `soft`: how thoughts are mixed, where rows have such.
    Raises ValueError for rows whose columns differ in number between batches, and for a folder that is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    run, held, shards, shapes = _runner(model, tuple(names), soft), list[Arrays](), list[int](), dict[str, Any]()
    with progress("captured", total) as shown:
        for batch in batches:
            arrays = run(params, batch)
            sizes = {name: array.shape[1:] for name, array in arrays.items()}
            if shapes and sizes != shapes:
                raise ValueError(
                    f"a batch of rows has arrays {sizes}, those before it {shapes}: pad rows to one length"
                )
            shapes, held = sizes, [*held, arrays]
            if sum(array.nbytes for part in held for array in part.values()) >= shard_bytes:
                shards.append(_write(folder, len(shards), held))
                held = []
            shown.advance()
    if held:
        shards.append(_write(folder, len(shards), held))
    if not shards:
        raise ValueError("there were no batches: nothing was captured")
    (folder / INDEX).write_text(json.dumps({"shapes": shapes, "shards": shards}))
    return open_captures(folder)


def _runner(model: Model, names: tuple[str, ...], soft: SoftConfig | None) -> Any:
    """(params, batch) -> arrays by name, rows first, on the host."""
    recurrent: dict[str, Any] = {"depth": model.config.recurrent.mean} if model.config.depth == "recurrent" else {}

    @jax.jit
    def run(params: Params, batch: TokenRows) -> Any:
        columns = Columns(batch.tokens, batch.positions, batch.segments, _latent_columns(batch))
        feedback = feedback_of(model, params, soft)
        return think(
            model, params, columns, thoughts=batch.thoughts, feedback=feedback, capture=names, **recurrent
        ).captured

    def host(params: Params, batch: TokenRows) -> Arrays:
        captured = jax.device_get(run(params, batch))
        flat = {
            "/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(captured)
        }
        arrays = {name: x.swapaxes(0, 1) if _looped(model, name) else x for name, x in flat.items()}
        own = {"tokens": batch.tokens, "segments": batch.segments, "mask": batch.mask}
        return arrays | {name: np.asarray(jax.device_get(array)) for name, array in own.items()}

    return host


def _latent_columns(batch: TokenRows) -> jax.Array:
    """Where the rows have thoughts [B, S] bool."""
    if batch.latent is None:
        return jnp.zeros(batch.tokens.shape, bool)
    return jnp.pad(batch.latent, ((0, 0), (batch.first, batch.columns - batch.first - batch.thoughts)))


def _looped(model: Model, name: str) -> bool:
    """Whether an array has an axis of iterations in front."""
    if model.config.depth != "recurrent":
        return False
    r, (kind, *layer) = model.config.recurrent, name.split("/")
    return kind == "state" or (bool(layer) and r.prelude <= int(layer[0]) < model.config.n_layers - r.coda)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def _write(folder: Path, number: int, held: Sequence[Arrays]) -> int:
    """Writes one shard and returns how many rows it has."""
    joined = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
    np.savez(_shard(folder, number), **joined)  # type: ignore[arg-type]
    return len(joined["tokens"])


def example_rows(run: Loaded, split: str, count: int, batch_size: int) -> Iterator[TokenRows]:
    """Prompts and targets of the first `count` examples of a split in their order, in rows of one length.

    Raises ValueError for a run whose rows hold thoughts: those come from data.sources.thoughts.
    """
    if run.ending.tokens:
        raise ValueError("this run thinks in states: give write_captures the batches of data.sources.thoughts")
    task, data = run.task(), run.config.get("data", {})
    rendering = (data.get("template", "none"), data.get("system") or None)
    examples = [sft_tokens(task, run.tokenizer, x, *rendering) for x in examples_of(task, split)[:count]]
    length = max(len(prompt) + len(target) for prompt, target in examples)
    for start in range(0, len(examples), batch_size):
        padded = [_row(*example, length, run.tokenizer.pad_id) for example in examples[start : start + batch_size]]
        arrays: dict[str, Any] = {name: np.stack([row[name] for row in padded]) for name in padded[0]}
        yield TokenRows(**arrays)


def _row(prompt: Sequence[int], target: Sequence[int], length: int, pad_id: int) -> Arrays:
    mask = np.concatenate([np.zeros(len(prompt)), np.ones(len(target))]).astype(np.float32)
    return pad_row({"tokens": np.array([*prompt, *target], np.int32), "mask": mask}, length, pad_id)


def capture(options: argparse.Namespace) -> None:
    """Writes the captures of one run over a split."""
    run = load_run(options.run)
    batches = example_rows(run, options.split, options.rows, options.batch)
    total = -(-options.rows // options.batch)
    captures = write_captures(run.model, run.params, batches, options.names, options.output, total=total)
    for name, shape in captures.shapes.items():
        print(f"{name}: {captures.rows} rows of {list(shape)}")


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.captures`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.captures", description="Arrays inside a model over a data set, as files."
    )
    flags.add_argument("--run", required=True, help="a run directory")
    flags.add_argument("--names", nargs="+", required=True, help=f"of {', '.join([*LAYER_POINTS, *MODEL_POINTS])}")
    flags.add_argument("--output", required=True, help="a new folder")
    flags.add_argument("--split", default="test", help="of the run's task")
    flags.add_argument("--rows", type=int, default=256, help="at most so many examples")
    flags.add_argument("--batch", type=int, default=32, help="rows at a time")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)
    return guarded(lambda: capture(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
