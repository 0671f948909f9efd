"""What a frozen model says of the data, measured once and kept in the run directory."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from store.disk import writing
from store.objects import is_object, write


def kept_arrays(workdir: Path, name: str, measure: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in `workdir`/`name`.npz, measured and written there where there are none yet.

    Several processes measure together each time: they need not see the same disk.
    """
    path = workdir / f"{name}.npz"
    if path.is_file() and jax.process_count() == 1:
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return dict(found)
    arrays = measure()
    if jax.process_index() == 0:
        held = io.BytesIO()
        np.savez(held, **arrays)  # type: ignore[arg-type]
        if is_object(path):
            write(path, held.getvalue())
            return arrays
        temporary = path.with_name(f".{path.name}.part")  # a reader sees the whole file or none
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(held.getvalue())
            temporary.replace(path)
    return arrays
