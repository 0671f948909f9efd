"""Where examples come from: made on demand, JSON lines, and data sets prepared by TFDS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from store.files import parse_json, read_text
from store.json_files import cleaned

Example = dict[str, Any]


@dataclass(frozen=True)
class Generated(Sequence[Example]):
    """A sequence that makes example i when it is asked for, the same one each time."""

    size: int
    make: Callable[[int], Example]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(self.size))]
        position = index + self.size if index < 0 else index
        if not 0 <= position < self.size:
            raise IndexError(f"example {index} of {self.size}")
        return self.make(int(position))


def read_jsonl(path: str | Path, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file; only at its end may lines be empty.

    `fields`: names every object must have with a string value. Byte-order marks count for nothing. Raises
    FileNotFoundError for a missing file and ValueError, naming the file and the line, for a line that is not such an
    object or holds half of a surrogate pair, and for a file without any.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; put the data set's JSON-lines files there or give another path")
    lines = read_text(file).rstrip().split("\n")
    if lines == [""]:
        raise ValueError(f"{file} is empty; expected one JSON object per line")
    return [_row(f"{file}, line {number}", line, fields) for number, line in enumerate(lines, start=1)]


def _row(where: str, line: str, fields: Sequence[str]) -> dict[str, Any]:
    try:
        row = parse_json(line, where)
    except ValueError as error:
        raise ValueError(f"{error}: {line[:80]!r}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
    missing = [name for name in fields if not isinstance(row.get(name), str)]
    if missing:
        raise ValueError(f"{where}: no text under {', '.join(missing)}; the line has {', '.join(row) or 'nothing'}")
    return row


def read_tfds(name: str, split: str, data_dir: str | Path) -> Sequence[dict[str, Any]]:
    """Returns a split of a data set that TFDS has prepared in `data_dir`, texts as str, without TensorFlow.

    Raises FileNotFoundError when it was not prepared there, ImportError naming tensorflow-datasets when that
    is missing.
    """
    tfds = import_tfds()
    versions = sorted(Path(data_dir, name).glob("[0-9]*.[0-9]*.[0-9]*"), key=_version)
    if not versions:
        raise FileNotFoundError(
            f"no prepared {name!r} in {data_dir}; prepare it first (data.tfds.prepare_gsm8k for gsm8k)"
        )
    builder = tfds.builder_from_directory(str(versions[-1]))
    if split not in builder.info.splits:
        raise ValueError(f"{versions[-1]} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    rows = builder.as_data_source(split=split)
    return Generated(len(rows), lambda index: _texts(rows[index]))


def import_tfds() -> Any:
    """Returns the module tensorflow_datasets, or raises an ImportError that says what to install."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "this source needs: pip install tensorflow-datasets importlib_resources array_record"
        ) from error
    return tensorflow_datasets


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".") if part.isdigit())


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value.decode("utf-8") if isinstance(value, bytes) else cleaned(value) for key, value in row.items()}
