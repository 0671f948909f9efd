"""Reference arrays: all of a file where the shared folder is at hand, else the cases kept in the repository."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of `name`.npz."""
    return dict(np.load(next(folder / f"{name}.npz" for folder in FOLDERS if (folder / f"{name}.npz").is_file())))


def cases(name: str) -> list[str]:
    """The first words of the keys."""
    return list(dict.fromkeys(key.split("/")[0] for key in golden(name) if "/" in key))
