"""A full disk, in words."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# TensorStore gives the system's error as text.
WORDS = ("ENOSPC", "EDQUOT", "EFBIG", "No space left on device", "Disk quota exceeded", "File too large")


class DiskFull(OSError):
    """A file could not be written for want of room."""

    def __init__(self, path: Path, then: str = "continues at its last checkpoint") -> None:
        """`path`: what was being written; `then`: what the same command does next."""
        free = room(shutil.disk_usage(path if path.is_dir() else path.parent).free)
        super().__init__(
            f"no room to write {path} ({free} free there, or a quota is used up). What was complete is whole. Free some"
            f" space and run the same command again: it {then}"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, speaks of a full disk, a quota or a limit on a file's size."""
    while error is not None:
        if getattr(error, "errno", None) in CODES or any(word in str(error) for word in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises DiskFull where writing `path` fails for want of room."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        raise DiskFull(path) from error


def room(size: float) -> str:
    """Bytes for people: 12.3 MB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(int(math.log(max(size, 1), 1000)), len(units) - 1)
    return f"{size / 1000**power:.{min(power, 1)}f} {units[power]}"
