"""The run directory's identity: whose it is, and what was run in it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.json_files import Fields, fault, read_json
from data.thoughts import Ending
from train.metrics import plain, write_json

LOCK = "run.lock"  # there while a process trains (train/lock.py)
DERIVED = ("resolved", "ending")  # what config.json tells besides the settings, and what follows from them
# The training itself stays as it was, on whatever devices.
MAY_CHANGE = ("eval", "checkpoint", "log", "launch", "max_bad_steps", "mesh", "sharding", *DERIVED)
# What every result.json has.
RESULT: Fields = {"status": str, "name": str, "stages": list, "evaluation": dict}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def claim(
    workdir: Path, config: ConfigDict, resolved: dict[str, Any] | None = None, ending: Ending | None = None
) -> None:
    """Writes config.json, with the model as built under `resolved`, and what its questions end in under `ending`.

    `check_free` comes first.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    built: dict[str, Any] = {"resolved": resolved} if resolved else {}
    built |= {"ending": plain(ending._asdict())} if ending and ending.tokens else {}
    write_json(workdir / "config.json", _plain(config) | built)


def check_free(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError unless `workdir` is new, empty or a run of this config; what differs is listed."""
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; choose a new --workdir")
    if path.is_file():
        different = _differences(_fixed(read_config(workdir)), _fixed(_plain(config)))
        if different:
            raise ValueError(
                f"{workdir} belongs to a run with another config; it differs in {'; '.join(different[:8])}."
                " Choose another --workdir, or use the same settings to resume"
            )
        return
    found_there = workdir.iterdir() if workdir.is_dir() else ()
    # A run killed as it began leaves a tokenizer, a lock, and a config.json that is not yet called so.
    names = sorted(child.name for child in found_there if not child.name.startswith((".config.json", LOCK)))
    if names and names != ["tokenizer"]:
        found = ", ".join(names[:5])
        raise ValueError(f"{workdir} is no run directory (it holds {found}); choose an empty or new --workdir")


def read_result(workdir: Path, fields: Fields = RESULT) -> dict[str, Any]:
    """What result.json holds, `fields` among it; ValueError that names the file where that is no result."""
    return read_parts(workdir / "result.json", "stages", fields, "delete it, and the command of its run writes it anew")


def read_parts(path: Path, parts: str, fields: Fields, advice: str) -> dict[str, Any]:
    """The object in a JSON file, with `fields`; of its list `parts` each has a name. ValueError else."""
    found = read_json(path, fields, advice)
    for part in found.get(parts, ()):
        if wrong := fault(part, {"name": str}):
            raise ValueError(f"{path} cannot be used: of one of its {parts}, {wrong}; {advice}")
    return found


def read_config(workdir: Path, fields: Fields | None = None) -> dict[str, Any]:
    """What config.json holds, `fields` among it; ValueError that names the file where that is no settings."""
    return read_json(workdir / "config.json", fields, "choose another --workdir")


def _plain(config: ConfigDict) -> dict[str, Any]:
    return plain(config.to_dict())


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in MAY_CHANGE}


def _differences(found: Any, wanted: Any, at: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return [d for k in keys for d in _differences(found.get(k), wanted.get(k), f"{at}.{k}".lstrip("."))]
    return [] if found == wanted else [f"{at} (there {found!r}, here {wanted!r})"]


def provenance(config: ConfigDict) -> dict[str, Any]:
    """Command, commit, versions, devices and seed, for result.json."""
    return {
        "command": shlex.join(["python", *_arguments()]),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "devices": [str(device) for device in jax.devices()],
        "seed": config.seed,
    }


def resume_command() -> str:
    """The command line that started this process."""
    return shlex.join(["python", *_arguments()])


def _arguments() -> list[str]:
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else None
    return (["-m", module] if module else [sys.argv[0]]) + sys.argv[1:]


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
