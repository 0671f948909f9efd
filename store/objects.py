"""Runs in a bucket, `--workdir=gs://bucket/run`: what an object store has in place of a file system's promises.

- In place of a temporary file, fsync and a rename: one upload. An object is there whole, or not at all.
- In place of O_APPEND: lines gather in this process, and the object is uploaded whole: every minute, and before a
  checkpoint, a result and the end of the lock (`flush`).
- In place of O_EXCL: a write on the condition that there is no such object (`create`).
- In place of a file's time as a sign of life: a change of the object's metadata, on that it is the same one.
- In place of the SHA-256 of a checkpoint's files: CRC32C, which the store keeps of each object; nothing is read again.
- In place of the name that a checkpoint's folder gets in the end: the object commit_success.txt.
- For libraries that read and write files: a local copy (`local_copy`), and a local file that is uploaded (`uploaded`).

A line that was not uploaded yet is newer than the last checkpoint, and a run that resumes there writes it again.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from etils import epath

SCHEME = "gs://"
UPLOAD_SECONDS = 60.0  # between two uploads of an object to which lines are appended


def place(path: str | os.PathLike[str]) -> Path:
    """The path of a local file, or of an object where it begins with gs://.

    An object's path is etils' `epath.Path`, which has those methods of `pathlib.Path` that are used for runs. Raises
    ValueError for other stores, and where gcsfs is not installed.
    """
    text = os.fspath(path)
    if not is_object(path):
        if "://" in text:
            raise ValueError(f"{text}: runs are kept in local folders and in buckets of Google Cloud Storage (gs://)")
        return Path(path)
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} needs gcsfs: pip install -c constraints.txt -e '.[gcs]'")
    if not text.removeprefix(SCHEME).strip("/"):
        raise ValueError(f"{text} names no bucket; write gs://bucket/folder")
    _without_cached_listings()
    return cast(Path, epath.Path(text))


def is_object(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an object or of a folder in a bucket."""
    return os.fspath(path).startswith(SCHEME)


class Stamp(NamedTuple):
    """Which object lies under a name (`generation`), and how often its metadata was changed."""

    generation: str
    changes: str


def create(path: Path, content: bytes) -> bool:
    """Writes an object unless there is one under that name, whoever else tries at the same time."""
    try:
        _filesystem().pipe_file(os.fspath(path), content, mode="create")
    except FileExistsError:
        return False
    return True


def stamp(path: Path) -> Stamp | None:
    """The stamp of an object; None where there is none."""
    try:
        described = _filesystem().call("GET", "b/{}/o/{}", *_names(path), json_out=True)
    except FileNotFoundError:
        return None
    return Stamp(str(described["generation"]), str(described["metageneration"]))


def renew(path: Path, generation: str) -> None:
    """Changes the stamp of an object; FileExistsError or FileNotFoundError where it is another one by now, or gone."""
    change = {"metadata": {"renewed": str(time.time())}}
    _filesystem().call("PATCH", "b/{}/o/{}", *_names(path), ifGenerationMatch=generation, json=change)


def delete(path: Path, generation: str) -> bool:
    """Deletes an object if it is still this one; of several who try, one succeeds."""
    try:
        _filesystem().call("DELETE", "b/{}/o/{}", *_names(path), ifGenerationMatch=generation)
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def checksums(folder: Path) -> dict[str, str]:
    """Name below `folder` -> the CRC32C that the store keeps of the object, eight hexadecimal digits."""
    root = os.fspath(folder).removeprefix(SCHEME).rstrip("/") + "/"
    listed = _filesystem().find(root, detail=True)
    return {
        name.removeprefix(root): base64.b64decode(described["crc32c"]).hex()
        for name, described in sorted(listed.items())
        if not name.endswith("/")
    }


class Lines:
    """The text of an object to which this process appends, and when it was uploaded last."""

    def __init__(self, path: Path) -> None:
        """Begins with what the object holds."""
        self._path, self._lock, self._uploaded = path, threading.Lock(), time.monotonic()
        self._text = bytearray(path.read_bytes() if path.is_file() else b"")
        self._changed = False

    def append(self, line: bytes) -> None:
        """Adds a line, and uploads all of them where that was not done for UPLOAD_SECONDS."""
        with self._lock:
            self._text += line
            self._changed = True
        if time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self.upload()

    def upload(self) -> None:
        """Uploads what changed."""
        with self._lock:
            if self._changed:
                self._path.write_bytes(bytes(self._text))
                self._uploaded, self._changed = time.monotonic(), False


# What this process appends to, as an operating system keeps the pages of files that are open.
_APPENDED: dict[str, Lines] = {}


def append(path: Path, line: bytes) -> None:
    """Appends a line to an object; others see it after the next upload."""
    name = os.fspath(path)
    if name not in _APPENDED:
        _APPENDED[name] = Lines(path)
    _APPENDED[name].append(line)


def write(path: Path, content: bytes) -> None:
    """Writes an object whole, in place of what was appended to it."""
    _APPENDED.pop(os.fspath(path), None)
    path.write_bytes(content)


def flush(folder: Path | None = None) -> None:
    """Uploads what was appended to objects (those below `folder`) and is not there yet."""
    for name, lines in list(_APPENDED.items()):
        if folder is None or name.startswith(os.fspath(folder)):
            lines.upload()


def local_copy(folder: Path) -> Path:
    """A folder whose files libraries can open: itself, or a copy that lasts as long as this process."""
    if not is_object(folder):
        return folder
    copy = Path(_scratch().name) / os.fspath(folder).removeprefix(SCHEME)
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    root = os.fspath(folder).rstrip("/") + "/"
    for name in checksums(folder):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(place(root + name).read_bytes())
    return copy


@contextlib.contextmanager
def uploaded(path: Path) -> Iterator[Path]:
    """A path that libraries can write a file or a folder to: itself, or a temporary one that is uploaded afterwards."""
    if not is_object(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / path.name
        yield local
        files = [local] if local.is_file() else [file for file in sorted(local.rglob("*")) if file.is_file()]
        for file in files:
            target = place(f"{os.fspath(path)}/{file.relative_to(local).as_posix()}") if file != local else path
            target.write_bytes(file.read_bytes())


def absolute(path: Path) -> Path:
    """The path from the root of the file system; that of an object is one already (epath would take it for local)."""
    return path if is_object(path) else path.absolute()


def on_disk(path: Path) -> Path:
    """The path itself, or a local one in the place of an object's, for what only disks can hold: logs, caches."""
    return Path("runs", "gs", os.fspath(path).removeprefix(SCHEME)) if is_object(path) else path


def move(path: Path, target: Path) -> None:
    """Renames a file or a folder; objects are copied one by one, and deleted once all copies are there."""
    if not is_object(path):
        path.rename(target)
        return
    inside = [f"/{name}" for name in checksums(path)]
    for name in inside or [""]:
        _filesystem().cp_file(os.fspath(path) + name, os.fspath(target) + name)
    remove(path)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; nothing where there is none."""
    if path.is_dir():
        cast(Any, path).rmtree() if is_object(path) else shutil.rmtree(path)
    else:
        _APPENDED.pop(os.fspath(path), None)
        path.unlink(missing_ok=True)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sagax-")


@functools.cache
def _without_cached_listings() -> None:
    """Another process's objects are seen at once: gcsfs would keep listings of folders for as long as it lives."""
    import fsspec

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def _filesystem() -> Any:
    """The file system that epath uses, of this thread."""
    import fsspec

    _without_cached_listings()
    return fsspec.filesystem("gcs", finalize_on_close=True)


def _names(path: Path) -> tuple[str, str]:
    """The bucket and the object's name in it."""
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, name
