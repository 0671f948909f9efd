"""The lock of a run in a folder: a file that is made where none is, and whose time is renewed."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from store.disk import writing
from store.lock_holder import ATTEMPTS, GUARDED, LOOK, PAUSE, HeldError, Holder, content_of, parse_holder, runs
from store.run_directory import LOCK


@dataclasses.dataclass(frozen=True)
class FileLock:
    """A lock that is a file."""

    path: Path
    holder: Holder

    def renew(self) -> None:
        """Sets the file's time."""
        if _read(self.path) == self.holder:
            os.utime(self.path)

    def remove(self) -> None:
        """Removes the file."""
        if _read(self.path) == self.holder:
            self.path.unlink()


def take_file(path: Path, me: Holder, say: Callable[[str], None], silence: float) -> FileLock:
    """Makes the file, once nobody who lives has one there; HeldError otherwise."""
    text = content_of(me)
    for _ in range(ATTEMPTS):
        with writing(path):
            if _made(path, text):
                return FileLock(path, me)
        holder = _read(path)
        alive = holder and runs(holder, me)
        if holder and alive is None:
            alive = _watched(path, holder, me, say, silence)
        if holder is None or alive is None:  # it is gone, or another's by now
            continue
        if alive:
            raise HeldError(path, holder)
        if _replaced(path, holder, me.token, text):
            say(f"{path} was left by {holder}, which is no more; it is taken over")
            return FileLock(path, me)
    raise OSError(f"{path} could not be made in {ATTEMPTS} attempts, while others made and removed it")


def _made(path: Path, text: str = "") -> bool:
    """Makes a file, unless there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    return True


def _watched(path: Path, holder: Holder, me: Holder, say: Callable[[str], None], silence: float) -> bool | None:
    """Watches a lock from elsewhere until its time is renewed (True), or was not for `silence` seconds (False); None
    when it is gone or has become another's.
    """
    first = _changed(path)
    left = silence - _age(path, me.token)
    if left > 0:
        say(f"{path} is held by {holder}; waiting up to {left:.0f} s for a sign of life from there")
    until = time.monotonic() + left
    while (wait := until - time.monotonic()) > 0:
        time.sleep(min(LOOK, wait))
        changed = _changed(path)
        if _read(path) != holder:
            return None
        if changed != first:
            return True
    return False


def _replaced(path: Path, dead: Holder, token: str, text: str) -> bool:
    """Puts our text in the place of a dead lock, if that is still there; of several who try only one succeeds."""
    guard, own = path.with_name(f"{LOCK}.over"), path.with_name(f"{LOCK}.{token}")
    if not _made(guard):
        if _age(guard, token) > GUARDED:  # left by one who was killed in the lines below
            guard.unlink(missing_ok=True)
        time.sleep(PAUSE)
        return False
    try:
        if _read(path) != dead:
            return False
        own.write_text(text, encoding="utf-8")
        own.replace(path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Who holds a lock, an unknown one where that cannot be read; None where there is none."""
    try:
        return parse_holder(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError:
        return Holder()


def _changed(path: Path) -> float | None:
    """The time of a file's last change; None where it is gone. Opened first: then network file systems look again."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _age(path: Path, token: str) -> float:
    """Seconds since a file was changed, by the clock of the machine that keeps it; infinite where it is gone."""
    probe = path.with_name(f"{LOCK}.{token}")
    probe.touch()
    try:
        changed = _changed(path)
        return math.inf if changed is None else probe.stat().st_mtime - changed
    finally:
        probe.unlink(missing_ok=True)
