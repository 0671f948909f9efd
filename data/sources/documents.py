"""Documents of a corpus, in whatever they lie: text files, JSON lines, array_record, TFDS; or prepared as tokens."""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.sources.examples import import_tfds
from data.tasks.base import Task, stable_hash
from store.files import parse_json, read_json_object, read_text

PREPARED = "prepared.json"
RECORDS = (".array_record", ".arrayrecord", ".riegeli")
LINES = (".jsonl", ".ndjson")
TEXTS = (".txt", ".text", ".md", ".rst", ".tex", ".py", ".js", ".ts", ".java", ".c", ".h", ".cc", ".cpp", ".rs", ".go")


class Documents(Protocol):
    """Documents by number."""

    def __len__(self) -> int:
        """How many there are."""

    def text(self, number: int) -> str:
        """One of them."""

    def size(self, number: int) -> int:
        """About how many bytes one of them has."""


def open_documents(path: str | Path, field: str = "text") -> Documents:
    """The documents of a file, or of all files of known kinds in a folder and its folders, in the order of their paths.

    `.jsonl`: the `field` of each line; `.array_record`: of each record, which is JSON or else text; a folder that TFDS
    prepared: of each example of its split train; of other texts each file is one. A folder that `python -m
    data.prepare` wrote has tokens (`prepared`). Raises FileNotFoundError for a missing path, ValueError for a folder
    without documents.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"no corpus at {place}: give a file or folder of documents")
    if (place / "dataset_info.json").is_file():
        return TfdsDocuments(place, field)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if _opener(file))
    parts: list[Documents] = []
    texts: list[Path] = []
    for file in files:
        opener = _opener(file) or _text
        texts += [file] if opener is _text else []
        parts += [] if opener is _text else [opener(file, field)]
    parts += [TextFiles(texts)] if texts else []
    found = parts[0] if len(parts) == 1 else Joined(parts)
    if not len(found):
        kinds = ", ".join((*LINES, *RECORDS, *TEXTS[:3]))
        raise ValueError(f"{place} holds no documents: looked for files that end in {kinds} ...")
    return found


def is_prepared(path: str | Path) -> bool:
    """Whether a folder holds tokens."""
    return (Path(path) / PREPARED).is_file()


def held_out(count: int, share: float) -> np.ndarray:
    """The numbers of the documents that are kept for evaluation, of `count`: at least one where two are there."""
    most = min(max(1, round(share * count)), count - 1) if share and count > 1 else 0
    order = np.random.default_rng(stable_hash("held out", count) % 2**63).permutation(count)
    return np.sort(order[:most])


class TextFiles:
    """Each file is a document."""

    def __init__(self, files: Sequence[Path]) -> None:
        """The files, read when they are asked for."""
        self._files = list(files)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    def text(self, number: int) -> str:
        """All of a file; ValueError where it is not UTF-8."""
        return read_text(self._files[number])

    def size(self, number: int) -> int:
        """Bytes of the file."""
        return self._files[number].stat().st_size


class JsonLines:
    """The field of every line of a file, which stays on disk; empty lines are none."""

    def __init__(self, file: Path, field: str) -> None:
        """Finds where the lines begin."""
        self._file, self._field = file, field

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        with self._file.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._file.stat().st_size else b""

    @cached_property
    def _edges(self) -> np.ndarray:
        """[lines, 2] where each line that holds anything begins and ends."""
        ends = np.flatnonzero(np.frombuffer(self._bytes, np.uint8) == ord("\n"))
        total = len(self._bytes)
        starts, ends = np.concatenate([[0], ends + 1]), np.concatenate([ends, [total]])
        filled = [bool(self._bytes[start:end].strip()) for start, end in zip(starts, ends, strict=True)]
        return np.stack([starts, ends], 1)[np.array(filled, bool)]

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process has opened."""
        return {"_file": self._file, "_field": self._field}

    def __len__(self) -> int:
        """Lines."""
        return len(self._edges)

    def text(self, number: int) -> str:
        """The document of a line; ValueError, naming it, where it has none."""
        start, end = self._edges[number]
        where = f"{self._file}, document {number + 1}"
        try:
            line = self._bytes[start:end].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8") from None
        return _field_of(parse_json(line, where), self._field, where)

    def size(self, number: int) -> int:
        """Bytes of the line."""
        return int(self._edges[number, 1] - self._edges[number, 0])


class Records:
    """The records of an array_record file: JSON objects with the field, or UTF-8 text."""

    def __init__(self, file: Path, field: str) -> None:
        """Opens nothing yet."""
        self._file, self._field = file, field

    @cached_property
    def _source(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(str(self._file))

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process has opened."""
        return {"_file": self._file, "_field": self._field}

    def __len__(self) -> int:
        """Records."""
        return len(self._source)

    def text(self, number: int) -> str:
        """The document of a record; ValueError, naming it, where it has none."""
        where = f"{self._file}, record {number}"
        try:
            text = self._source[number].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8") from None
        if not text.startswith("{"):
            return str(text)
        try:
            row = json.loads(text)
        except ValueError:
            return str(text)
        return _field_of(row, self._field, where)

    def size(self, number: int) -> int:
        """Bytes of the record."""
        return len(self._source[number])


class TfdsDocuments:
    """The field of every example of the split train, as TFDS prepared it in a folder of one version."""

    def __init__(self, folder: Path, field: str) -> None:
        """Opens nothing yet."""
        self._folder, self._field = folder, field

    @cached_property
    def _rows(self) -> Any:
        return import_tfds().builder_from_directory(str(self._folder)).as_data_source(split="train")

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process has opened."""
        return {"_folder": self._folder, "_field": self._field}

    def __len__(self) -> int:
        """Examples."""
        return len(self._rows)

    def text(self, number: int) -> str:
        """The document of an example; ValueError, naming it, where it has none."""
        row = {name: x.decode() if isinstance(x, bytes) else x for name, x in self._rows[number].items()}
        return _field_of(row, self._field, f"{self._folder}, example {number}")

    def size(self, number: int) -> int:
        """Bytes of the document."""
        return len(self.text(number).encode())


class TaskDocuments:
    """The training examples of a task: prompt and answer together are a document."""

    def __init__(self, task: Task) -> None:
        """The examples, made or read when they are asked for."""
        self._task, self._examples = task, task.examples("train")

    @property
    def alphabet(self) -> str | None:
        """Every character of the documents, or None where the text is free."""
        return self._task.alphabet

    def __len__(self) -> int:
        """Examples."""
        return len(self._examples)

    def text(self, number: int) -> str:
        """A prompt and its answer."""
        example = self._examples[number]
        return self._task.prompt(example) + self._task.target(example)

    def size(self, number: int) -> int:
        """Bytes of the document."""
        return len(self.text(number).encode())


class Joined:
    """Several sets of documents, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        """The parts in their order."""
        self._parts = list(parts)
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        """All of them."""
        return self._ends[-1] if self._ends else 0

    def _place(self, number: int) -> tuple[Documents, int]:
        part = bisect_right(self._ends, number)
        return self._parts[part], number - (self._ends[part - 1] if part else 0)

    def text(self, number: int) -> str:
        """One of them."""
        part, inside = self._place(number)
        return part.text(inside)

    def size(self, number: int) -> int:
        """About how many bytes it has."""
        part, inside = self._place(number)
        return part.size(inside)


class Prepared:
    """Documents as tokens, as `python -m data.prepare` wrote them: `manifest` says of what, and by which tokenizer."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the manifest and the lengths; ValueError where files are missing."""
        self._folder = Path(folder)
        self.manifest = read_json_object(self._folder / PREPARED)
        self.lengths = np.load(self._folder / "lengths.npy")
        missing = [name for name in self.manifest["shards"] if not (self._folder / name).is_file()]
        if missing:
            raise ValueError(f"{self._folder}: {PREPARED} names {', '.join(missing)}, which are not there")

    @cached_property
    def _source(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource([str(self._folder / name) for name in self.manifest["shards"]])

    def __getstate__(self) -> dict[str, Any]:
        """Without what a process has opened."""
        return {name: value for name, value in vars(self).items() if name != "_source"}

    def __len__(self) -> int:
        """Documents."""
        return len(self.lengths)

    def tokens(self, number: int) -> np.ndarray:
        """The ids of a document [n] int32, without bos and eos."""
        return np.frombuffer(self._source[number], self.manifest["dtype"]).astype(np.int32)

    def size(self, number: int) -> int:
        """Bytes of its text."""
        return int(self.lengths[number, 1])


def _text(file: Path, field: str) -> Documents:
    return TextFiles([file])


def _opener(file: Path) -> Callable[[Path, str], Documents] | None:
    if not file.is_file():
        return None
    suffix = file.suffix.lower()
    if suffix in LINES:
        return JsonLines
    # TFDS's shards are called x.array_record-00000-of-00001.
    if any(kind in file.name for kind in RECORDS):
        return Records
    return _text if suffix in TEXTS else None


def _field_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: no text under {field!r}; it has {found or 'nothing'}: set the source's field")
    return str(row[field])
