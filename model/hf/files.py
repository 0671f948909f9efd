"""The tensors of a folder in the Hub's layout, read lazily and in part."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from model.hf.values import listed

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Names of safetensors -> ours.
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FP8 = "F8_E4M3"


class Tensor(Protocol):
    """A tensor still in its file, with the shape and the dtype that reading gives."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _Plain:
    file: Any
    path: Path
    name: str
    start: int  # of its bytes in the file

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        return str(self.file.get_slice(self.name).get_dtype())

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        if self.dtype == FP8:  # which safetensors does not hand to numpy
            return np.memmap(self.path, np.uint8, "r", self.start, self.shape)[index].view(jnp.float8_e4m3fn)
        return self.file.get_slice(self.name)[index]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, which may begin with a byte order mark; every error names the file.

    Raises FileNotFoundError that says what a folder should hold, ValueError for anything but a whole object.
    """
    if not path.is_file():
        raise FileNotFoundError(_nothing_at(path))
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Is the file whole?") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {reprlib.repr(content)}, expected an object")
    return content


def _nothing_at(path: Path) -> str:
    folder = path.parent
    expected = f"{path} does not exist; expected a folder with {path.name} and {SINGLE} (or {INDEX})"
    if folder.is_dir():
        return f"{expected}, found {listed(sorted(p.name for p in folder.iterdir())) or 'nothing'} in it"
    what = (
        f"{folder} is a file" if folder.exists() else f"there is no folder {folder} (nothing is downloaded from here)"
    )
    return f"{what}: {expected}"


def tensor_names(folder: Path) -> list[str]:
    """The names of a folder's tensors, by its index or its one file; [] where it has neither."""
    if (folder / INDEX).is_file():
        return list(_weight_map(folder / INDEX))
    if not (folder / SINGLE).is_file():
        return []
    with _opened(folder / SINGLE) as file:
        return list(file.keys())


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Tensor]]:
    """Every tensor of the folder by name, none of them read."""
    tensors: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for path in _files(folder):
            file, starts = stack.enter_context(_opened(path)), _starts(path)
            for name, start in starts.items():
                if name in tensors:
                    raise ValueError(f"tensor {name!r} is in two files of {folder}")
                tensors[name] = _Plain(file, path, name, start)
        yield tensors


def _opened(path: Path) -> Any:
    """The file, its header verified: sizes, offsets and dtypes agree with each other and with the file's length."""
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}. Download or convert it again") from error


def _files(folder: Path) -> list[Path]:
    names = sorted(set(_weight_map(folder / INDEX).values())) if (folder / INDEX).is_file() else [SINGLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        entries = sorted(entry.name for entry in folder.iterdir())
        raise FileNotFoundError(f"{folder} lacks {listed(missing)}; found {listed(entries)}. Convert or download them.")
    return [folder / name for name in names]


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> file of an index; ValueError for anything else, and for a file outside the folder.

    Names alone are judged: a name that stays in the folder may be a link, as those of the Hub's cache are.
    """
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f'{path} must hold an object "weight_map", tensor -> file; found {reprlib.repr(files)}')
    outside = sorted({name for name in files.values() if not _stays_inside(name)})
    if outside:
        raise ValueError(f"{path} names files outside its folder: {listed(map(repr, outside))}; nothing was read")
    return files


def _stays_inside(name: str) -> bool:
    parts = PureWindowsPath(name)  # which knows drives and both slashes
    return bool(parts.parts) and not parts.anchor and ".." not in parts.parts


def _starts(path: Path) -> dict[str, int]:
    """Where each tensor's bytes begin, by the file's own header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
