"""Reading what was trained: a run directory, or a folder in the Hub's layout, as model, parameters, tokenizer, task."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data.tasks import build_task
from data.tasks.base import Task
from data.thoughts import NO_ENDING, Ending, ending_from
from data.tokenizers.base import Tokenizer
from data.tokenizers.build import check_vocab, load_tokenizer
from model import Model, build, hf
from model.lm import Params
from store.json_files import read_json
from store.manifest import FOLDER, check_path, checkpoint_steps, damage, newest_whole
from store.objects import absolute, is_object, local_copy, place


@dataclasses.dataclass(frozen=True)
class Origin:
    """A trained model on disk, no array of it read yet; `config` is its run's, {} for a Hub folder."""

    folder: Path
    model: Model
    config: dict[str, Any]

    def params(
        self,
        mesh: jax.sharding.Mesh | None = None,
        step: int | None = None,
        dtype: str | None = None,
        step_back: bool = False,
        mtp: int | None = None,
    ) -> Params:
        """Its parameters, straight to the devices of `mesh`; `dtype` recasts a Hub folder's (None: as stored).

        `step_back`: from the checkpoint before where the last one is damaged, with a warning; else that is an error.
        `mtp`: only so many of its modules of multi-token prediction (None: all of `model`).
        """
        if not self.config:
            modules = self.model.config.mtp.depth if mtp is None else mtp
            return hf.load(self.folder, mesh=mesh, dtype=dtype, mtp=modules)[1]
        shardings = None if mesh is None else self.model.shardings(mesh)
        params = restore_params(self.folder, self.model, step, shardings, step_back)
        return params if mtp is None else without_modules(params, mtp)

    @property
    def ending(self) -> Ending:
        """What its questions ended in, when its training did."""
        return ending_in(self.config)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer it was trained with."""
        return load_tokenizer(local_copy(self.folder / "tokenizer") if self.config else self.folder)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model with all that is needed to talk to it; `config` is the run's, {} for a Hub folder."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    config: dict[str, Any]

    @property
    def ending(self) -> Ending:
        """What its questions ended in, when its training did."""
        return ending_in(self.config)

    def task(self, name: str | None = None, path: str | None = None, options: Mapping[str, Any] | None = None) -> Task:
        """The run's own task, or another by name; `path` is its data folder where it reads one.

        `options` of the task go before those of the run.
        """
        data = self.config.get("data", {})
        own = name is None or name == data.get("task")
        chosen_options = (dict(data.get("options", {})) if own else {}) | dict(options or {})
        folder = path or (data.get("path") if own else None)
        chosen = name or data.get("task")
        if chosen is None:
            raise ValueError("a Hub folder has no task of its own: name one")
        return build_task(chosen, **chosen_options, **({"path": folder} if folder else {}))


def load_run(folder: str | Path, step: int | None = None, dtype: str | None = None) -> Loaded:
    """Loads a run directory (a pipeline's: its last stage with a checkpoint) or a folder in the Hub's layout.

    `dtype` recasts the parameters (None: as stored; of a Hub folder that mixes dtypes see `hf.load`). A damaged last
    checkpoint gives way to the one before, with a warning. Raises FileNotFoundError that says what is missing.
    """
    origin = open_origin(folder)
    if dtype is not None:
        origin = dataclasses.replace(origin, model=build(origin.model.config.replace(param_dtype=dtype)))
    tokenizer = check_vocab(origin.tokenizer(), origin.model.config.vocab_size, origin.model.config.pairs)
    return Loaded(origin.model, origin.params(step=step, dtype=dtype, step_back=True), tokenizer, origin.config)


def open_origin(folder: str | Path) -> Origin:
    """Reads only the description of what lies in `folder`; FileNotFoundError when it is nothing we know."""
    folder = place(folder)
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise FileNotFoundError(f"{what}; give a run directory or a folder in the Hub's layout")
    config = _read_config(folder)
    if "algorithm" not in config:
        if is_object(folder):
            raise ValueError(f"{folder} is a folder in the Hub's layout, which is read from a disk; copy it there")
        return Origin(folder, hf.describe(folder), {})
    check_path(folder)
    folder = stage_folder(folder, config)
    config = read_json(folder / "config.json", {"algorithm": str, "resolved": dict})
    return Origin(folder, build(config["resolved"]), config)


def without_modules(params: Params, kept: int) -> Params:
    """The parameters with the first `kept` modules of multi-token prediction alone."""
    inside = lambda name: not name.startswith("mtp_") or int(name.removeprefix("mtp_")) < kept  # noqa: E731
    tree = {name: value for name, value in params.items() if inside(name)}
    if "state" in tree:
        tree["state"] = {name: value for name, value in tree["state"].items() if inside(name)}
    return tree


def ending_in(config: dict[str, Any]) -> Ending:
    """What config.json says under `ending`; nothing for runs without thoughts, and for Hub folders."""
    found = config.get("ending")
    return ending_from(found) if found else NO_ENDING


def stage_folder(folder: Path, config: dict[str, Any]) -> Path:
    """The folder that holds the checkpoints: the run's own, or that of the last stage that has any."""
    if not config.get("stages"):
        return folder
    ready = [folder / name for name in config["stages"] if checkpoint_steps(folder / name)]
    # What is asked for is a model that speaks, where there is one: not one that scores.
    ready = [one for one in ready if not _scores(one)] or ready
    if not ready:
        raise FileNotFoundError(
            f"{folder} is a pipeline, but none of its stages {config['stages']} has a checkpoint yet"
        )
    return ready[-1]


def _scores(folder: Path) -> bool:
    """Whether a stage's model gives scores."""
    resolved = read_json(folder / "config.json").get("resolved", {})
    return bool(resolved.get("score", {}).get("size"))


def restore_params(
    folder: Path, model: Model, step: int | None = None, shardings: Any = None, step_back: bool = False
) -> Params:
    """The parameters of a checkpoint (the latest), averaged where the run kept an average; `shardings` a like tree.

    Raises FileNotFoundError when it is not there, RuntimeError when its files are not as they were saved; `step_back`
    as in `Origin.params`.
    """
    at = _whole(folder, step, step_back)
    abstract = model.abstract()
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(at / _item(folder), like)


def _item(folder: Path) -> str:
    """The averaged parameters where any checkpoint of the run has them: then all do, or are damaged."""
    return "ema" if any((folder / FOLDER).glob("[0-9]*/ema")) else "params"


def _whole(folder: Path, step: int | None, step_back: bool) -> Path:
    """The folder of a checkpoint, the latest if none is named, once the files of its parameters are verified."""
    steps = checkpoint_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" {step}"
        raise FileNotFoundError(f"no checkpoint{wanted} in {folder / FOLDER}; found steps {steps}")
    asked = steps[-1] if step is None else step
    item = _item(folder)
    found = damage(folder, asked, item)
    if found and not (step_back and step is None):
        raise RuntimeError(
            f"checkpoint {asked} of {folder} is damaged: {found}. Checkpoints there: {steps}. To train its end again,"
            f" remove {folder / 'result.json'} if there is one and run the command of that run"
        )
    whole = newest_whole(folder, item)[0] if found else asked
    if whole is None:
        raise RuntimeError(f"no checkpoint of {folder} is whole; the last one: {found}")
    if found:
        warnings.warn(f"checkpoint {asked} of {folder} is damaged: {found}. Step {whole} is read instead", stacklevel=2)
    return absolute(folder / FOLDER / str(whole))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: it is neither a run directory nor a folder in the Hub's layout"
        )
    return read_json(path)
