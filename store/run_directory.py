"""The run directory's identity: whose it is, and what was run in it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from settings.run import RunConfig
from settings.table import completed, declared_since, executing
from store.json_files import Fields, fault, read_json
from store.manifest import check_path, checkpoint_steps
from store.objects import is_object, move, remove
from store.records import plain, write_json

INPUTS = "inputs.json"  # of a stage: what those that it needs were when it began
LOCK = "run.lock"  # there while a process trains (store/lock.py)
DERIVED = ("resolved", "ending")  # what config.json tells besides the settings, and what follows from them
MAY_CHANGE = (*executing(), *DERIVED)  # the training itself stays as it was, on whatever devices
# What a run writes before its first step is done.
BEGINNING = ("config.json", "metrics.jsonl", "samples.jsonl", "accuracy.jsonl", "tokenizer", "checkpoints", INPUTS)
# What every result.json has.
RESULT: Fields = {"status": str, "name": str, "stages": list, "evaluation": dict}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def claim(
    workdir: Path, config: ConfigDict, resolved: dict[str, Any] | None = None, ending: dict[str, Any] | None = None
) -> None:
    """Writes config.json, with the model as built under `resolved`, and what its questions end in under `ending`.

    `check_free` comes first.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    built: dict[str, Any] = {"resolved": resolved} if resolved else {}
    built |= {"ending": plain(ending)} if ending else {}
    write_json(workdir / "config.json", _plain(config) | built)


def check_free(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError unless `workdir` is new, empty or a run of this config; what differs is listed.

    More steps than before continue a run, where its schedule allows that. A setting that was declared after the run had
    begun counts as its default there.
    """
    check_path(workdir)
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file; choose a new --workdir")
    if path.is_file():
        before = read_config(workdir)
        if bool(before.get("stages")) != bool(config.stages):
            kinds = ("a single run", "a pipeline")
            raise ValueError(
                f"{workdir} is the directory of {kinds[bool(before.get('stages'))]}, and this is"
                f" {kinds[bool(config.stages)]}; choose another --workdir"
            )
        if config.stages:
            return  # each stage is compared for itself (train/pipeline.py)
        different = _changes(before, config)
        longer = {name: values for name, values in different.items() if name == "steps"}
        if different and len(longer) == len(different):
            check_extension(workdir, completed(before), longer)
        elif different:
            raise ValueError(
                f"{workdir} belongs to a run with another config; it differs in {_in_words(different, before)}."
                " Choose another --workdir, or use the same settings to resume"
            )
        return
    children = workdir.iterdir() if workdir.is_dir() else ()
    # A run killed as it began leaves a tokenizer, a lock, and a config.json that is not yet called so.
    names = sorted(child.name for child in children if not child.name.startswith((".config.json", LOCK)))
    if not set(names) <= {"tokenizer", INPUTS}:
        raise ValueError(
            f"{workdir} is no run directory (it holds {', '.join(names[:5])}); choose an empty or new --workdir"
        )


def check_extension(workdir: Path, before: dict[str, Any], longer: dict[str, tuple[Any, Any]]) -> None:
    """Raises ValueError unless the run can go on to more steps as if it had been meant to from the start.

    `longer`: the steps that differ, (there, here). Rates that depend on the length of the run would have been others
    from the first step on.
    """
    for name, (there, here) in longer.items():
        words = f"{workdir} was to take {name}={there}, and {name}={here} is asked for"
        if not (isinstance(there, int) and isinstance(here, int) and here > there):
            raise ValueError(f"{words}: a run can be continued, not shortened; choose another --workdir")
        schedule = before["optimizer"]["schedule"]
        if schedule != "constant":
            raise ValueError(
                f"{words}: the rates of schedule={schedule} depend on the number of steps, so those taken"
                " would have been others (schedule=constant can be continued). Choose another --workdir with"
                f" --config.init_from={workdir}, or train anew"
            )


def set_aside(workdir: Path) -> None:
    """Renames the result of a run that goes on to more steps to result-<steps>.json."""
    path = workdir / "result.json"
    if path.is_file():
        steps = steps_done(read_result(workdir))
        move(path, workdir / f"result-{sum(steps) if steps else 'before'}.json")


def steps_done(result: dict[str, Any]) -> list[int]:
    """The steps of each stage in a result; [] where it does not say."""
    return [row["steps"] for row in result.get("stages", []) if "steps" in row]


def is_complete(workdir: Path, steps: Sequence[int]) -> bool:
    """Whether a directory holds the result of stages of so many steps, or of one that does not say how many."""
    path = workdir / "result.json"
    return path.is_file() and steps_done(read_result(workdir)) in ([], list(steps))


def release(workdir: Path) -> None:
    """Takes back what a run wrote that was refused before its first step was done; checkpoints are left alone."""
    if checkpoint_steps(workdir):
        return
    for name in BEGINNING:
        remove(workdir / name)
    if not is_object(workdir) and workdir.is_dir() and not any(workdir.iterdir()):
        workdir.rmdir()


def read_result(workdir: Path, fields: Fields = RESULT) -> dict[str, Any]:
    """What result.json holds, `fields` among it; ValueError that names the file where that is no result."""
    return read_parts(workdir / "result.json", "stages", fields, "delete it, and the command of its run writes it anew")


def read_parts(path: Path, parts: str, fields: Fields, advice: str) -> dict[str, Any]:
    """The object in a JSON file, with `fields`; of its list `parts` each has a name. ValueError else."""
    content = read_json(path, fields, advice)
    for part in content.get(parts, ()):
        if wrong := fault(part, {"name": str}):
            raise ValueError(f"{path} cannot be used: of one of its {parts}, {wrong}; {advice}")
    return content


def read_config(workdir: Path, fields: Fields | None = None) -> dict[str, Any]:
    """What config.json holds, `fields` among it; ValueError that names the file where that is no settings."""
    return read_json(workdir / "config.json", fields, "choose another --workdir")


def _plain(config: ConfigDict) -> dict[str, Any]:
    return plain(config.to_dict())


def fixed_settings(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """The settings of a single run that may not change once it has begun; of one that began with the same ones as they
    were written then, when there may have been fewer.
    """
    try:
        before = read_config(workdir) if (workdir / "config.json").is_file() else None
    except ValueError:  # whoever resumes it is told
        before = None
    if before is None or _changes(before, config):
        return _fixed(_plain(config))
    return _fixed(before)


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in MAY_CHANGE}


def _changes(before: dict[str, Any], config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """(there, here) of every fixed setting that is another one than in a stored config."""
    return _differences(_fixed(plain(completed(before))), _fixed(_plain(config)))


def _in_words(different: dict[str, tuple[Any, Any]], before: dict[str, Any]) -> str:
    """The first settings that differ, each with both values; those that were declared later are told as such."""
    later, listed = [row.name for row in declared_since(before)], []
    for name, (there, here) in list(different.items())[:8]:
        new = any(f"{name}.".startswith(f"{setting}.") for setting in later)
        listed.append(f"{name} (there {there!r}{', the default of a later setting' if new else ''}, here {here!r})")
    return "; ".join(listed)


def _differences(there: Any, here: Any, at: str = "") -> dict[str, tuple[Any, Any]]:
    """(there, here) of every setting that differs, by dotted name."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        parts = (_differences(there.get(key), here.get(key), f"{at}.{key}".lstrip(".")) for key in keys)
        return {name: values for part in parts for name, values in part.items()}
    return {} if there == here else {at: (there, here)}


def provenance(config: ConfigDict | RunConfig) -> dict[str, Any]:
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
    """The command line that started this process, or in a notebook the call that goes on."""
    if "ipykernel" in sys.argv[0]:
        return "run(config, workdir), or by_hand(config, workdir), with the same directory"
    return shlex.join(["python", *_arguments()])


def _arguments() -> list[str]:
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else None
    return (["-m", module] if module else [sys.argv[0]]) + sys.argv[1:]


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None
