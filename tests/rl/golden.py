"""The golden values of the RL tests: the part kept in the repository, and the whole where it is at hand."""

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "kept": ROOT / "tests" / "golden" / "rl_objectives.npz",
    "whole": ROOT.parent / "shared" / "golden" / "rl_objectives.npz",
}
ARRAYS = {name: dict(np.load(path)) for name, path in FILES.items() if path.is_file()}


def cases(prefix: str) -> list[tuple[str, str, str]]:
    """Every (file, case, name) that has an entry `case/prefix/name...`; of the whole, what is not kept."""
    found: dict[tuple[str, str], str] = {}
    for file, arrays in ARRAYS.items():
        for case, kind, *rest in (key.split("/") for key in arrays if key.count("/") > 1):
            if kind == prefix:
                found.setdefault((case, rest[0]), file)
    return sorted((file, *key) for key, file in found.items())
