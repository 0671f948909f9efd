"""One run to a directory: whoever trains in it holds `run.lock`, a small file that says who that is.

The file is made where none is (O_EXCL, which network file systems keep, too), and its time of change is renewed every
few seconds. It goes away when the run ends, with an error or without, and on SIGTERM. Left behind all the same, by
`kill -9` or a lost machine, it is taken over:

- On the same machine it is known at once whether its process still runs: by number, by the time at which that process
  began (numbers are given out again) and by the boot and the namespace in which both count.
- From elsewhere nothing is known of a process. A lock whose time was not renewed for SILENCE seconds is a dead one's;
  whoever finds a younger one watches it until it is renewed, or that old. All times are those of the file's own server.

In a bucket the same holds of an object: store/object_lock.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import jax

from store.disk import writing
from store.holder import ATTEMPTS, LOOK, HeldError, Holder, content_of, here, parse_holder, runs
from store.object_lock import take_object
from store.objects import flush, is_object, place
from store.processes import gathered
from store.run_directory import LOCK

BEAT, SILENCE = 10.0, 60.0  # seconds between two signs of life, and without any until a lock from elsewhere is dead
PAUSE, GUARDED = 0.05, 5.0  # seconds between two attempts while another takes over, and seconds that this may take


@contextlib.contextmanager
def locked(
    workdir: Path, say: Callable[[str], None] = print, *, beat: float = BEAT, silence: float = SILENCE
) -> Iterator[None]:
    """Holds `workdir/run.lock`, so that nobody else trains there; `say` hears of a lock that is taken over.

    Of several hosts the first one holds it for all. A folder that was made for the lock and is empty in the end goes
    away with it. Raises HeldError, a ValueError, in all hosts where another process holds it.
    """
    path, problem = place(workdir) / LOCK, None
    remote = is_object(path)
    missing = [] if remote else [part for part in (path.parent, *path.parent.parents) if not part.exists()]
    take = take_object if remote else take_file
    with contextlib.ExitStack() as stack:
        stack.callback(_unmake, missing)
        if jax.process_index() == 0:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(Held(take(path, here(), say, silence), beat))
                stack.callback(flush, path.parent)
            except (OSError, HeldError) as error:
                problem = error
        # Nobody goes on alone, and nobody waits for one who does not come.
        if told := gathered([problem and str(problem)])[0]:
            raise problem or ValueError(told)
        yield


class Lock(Protocol):
    """A lock that this process has taken."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def renew(self) -> None:
        """Gives a sign of life, unless the lock has become another's; OSError where that fails."""

    def remove(self) -> None:
        """Removes it, unless it has become another's; OSError where that fails."""


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


class Held:
    """A lock of this process: within its context a thread renews it, and a SIGTERM that would end the process without a
    word removes it first.
    """

    def __init__(self, lock: Lock, beat: float) -> None:
        """`beat`: seconds between two renewals."""
        self._lock, self._beat = lock, beat
        self._over = threading.Event()

    def __enter__(self) -> Held:
        """Starts the thread, and installs the handler (signals reach the main thread only)."""
        before = signal.getsignal(signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()
        self._handles = main and (before is signal.SIG_DFL or isinstance(before, _Release))
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, _Release(self, before))
        threading.Thread(target=self._renew, name=f"renews {self._lock.path}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the lock and restores the handler."""
        self._over.set()
        self.remove()
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def remove(self) -> None:
        """Removes the lock, unless it has become another's."""
        with contextlib.suppress(OSError):
            self._lock.remove()

    def _renew(self) -> None:
        while not self._over.wait(self._beat):
            with contextlib.suppress(OSError):  # a file server may be away for a while
                self._lock.renew()


class _Release:
    """The handler of a signal that removes a lock, then does what was done before."""

    def __init__(self, held: Held, before: Any) -> None:
        self._held, self._before = held, before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._held.remove()
        signal.signal(number, self._before)
        signal.raise_signal(number)


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


def _unmake(folders: list[Path]) -> None:
    """Removes folders that are empty, the deepest first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
