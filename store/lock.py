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
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import jax

from store.file_lock import take_file
from store.lock_holder import HeldError, here
from store.object_lock import take_object
from store.objects import flush, is_object, place
from store.processes import gathered
from store.run_directory import LOCK

BEAT, SILENCE = 10.0, 60.0  # seconds between two signs of life, and without any until a lock from elsewhere is dead


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


def _unmake(folders: list[Path]) -> None:
    """Removes folders that are empty, the deepest first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
