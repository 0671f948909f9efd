"""One run to a directory: whoever trains in it holds `run.lock`, a small file that says who that is.

The file is made where none is (O_EXCL, which network file systems keep, too), and its time of change is renewed every
few seconds. It goes away when the run ends, with an error or without, and on SIGTERM. Left behind all the same, by
`kill -9` or a lost machine, it is taken over:

- On the same machine it is known at once whether its process still runs: by number, by the time at which that process
  began (numbers are given out again) and by the boot and the namespace in which both count.
- From elsewhere nothing is known of a process. A lock whose time was not renewed for SILENCE seconds is a dead one's;
  whoever finds a younger one watches it until it is renewed, or that old. All times are those of the file's own server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax

from store.disk import writing
from store.json_files import parse_json, without_surrogates
from store.processes import gathered
from store.run_directory import LOCK, resume_command

BEAT, SILENCE = 10.0, 60.0  # seconds between two signs of life, and without any until a lock from elsewhere is dead
LOOK = 0.5  # seconds between two looks at a lock that may be dead
# At making the file, while others make and remove it; seconds between them while another takes over, and seconds that
# this may take.
ATTEMPTS, PAUSE, GUARDED = 200, 0.05, 5.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock: `boot` and `space` say in which run of which machine `process` counts, `began` tells processes
    with the same number apart; all of them may be unknown. `token` is this lock's own.
    """

    host: str = "an unknown host"
    process: int = 0
    began: int = 0
    boot: str = ""
    space: str = ""
    command: str = ""
    token: str = ""

    def __str__(self) -> str:
        command = f" ({self.command})" if self.command else ""
        return f"process {self.process or 'unknown'} on {self.host}{command}"


class HeldError(ValueError):
    """A directory in which another process trains."""

    def __init__(self, path: Path, holder: Holder) -> None:
        """Names the holder, and the file to remove where there is no such process."""
        super().__init__(
            f"{path.parent} is in use: {holder} trains there. Wait for it, stop it, or choose another --workdir. If"
            f" that process is no more, delete {path}"
        )


@contextlib.contextmanager
def locked(
    workdir: Path, say: Callable[[str], None] = print, *, beat: float = BEAT, silence: float = SILENCE
) -> Iterator[None]:
    """Holds `workdir/run.lock`, so that nobody else trains there; `say` hears of a lock that is taken over.

    Of several hosts the first one holds it for all. A folder that was made for the lock and is empty in the end goes
    away with it. Raises HeldError, a ValueError, in all hosts where another process holds it.
    """
    path, problem = Path(workdir) / LOCK, None
    missing = [part for part in (path.parent, *path.parent.parents) if not part.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_unmake, missing)
        if jax.process_index() == 0:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(Held(path, _take(path, here(), say, silence), beat))
            except (OSError, HeldError) as error:
                problem = error
        # Nobody goes on alone, and nobody waits for one who does not come.
        if told := gathered([problem and str(problem)])[0]:
            raise problem or ValueError(told)
        yield


class Held:
    """A lock of this process: within its context a thread renews the time of the file, and a SIGTERM that would end the
    process without a word removes the file first.
    """

    def __init__(self, path: Path, holder: Holder, beat: float) -> None:
        """`beat`: seconds between two renewals."""
        self._path, self._holder, self._beat = path, holder, beat
        self._over = threading.Event()

    def __enter__(self) -> Held:
        """Starts the thread, and installs the handler (signals reach the main thread only)."""
        before = signal.getsignal(signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()
        self._handles = main and (before is signal.SIG_DFL or isinstance(before, _Release))
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, _Release(self, before))
        threading.Thread(target=self._renew, name=f"renews {self._path}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the file and restores the handler."""
        self._over.set()
        self.remove()
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def remove(self) -> None:
        """Removes the file, unless it has become another's."""
        with contextlib.suppress(OSError):
            if _read(self._path) == self._holder:
                self._path.unlink()

    def _renew(self) -> None:
        while not self._over.wait(self._beat):
            with contextlib.suppress(OSError):  # a file server may be away for a while
                if _read(self._path) == self._holder:
                    os.utime(self._path)


class _Release:
    """The handler of a signal that removes a lock, then does what was done before."""

    def __init__(self, held: Held, before: Any) -> None:
        self._held, self._before = held, before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._held.remove()
        signal.signal(number, self._before)
        signal.raise_signal(number)


def here() -> Holder:
    """This process, as the holder of a new lock."""
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        began=began(os.getpid()) or 0,
        boot=_line("/proc/sys/kernel/random/boot_id"),
        space=_link("/proc/self/ns/pid"),
        command=without_surrogates(resume_command()),
        token=secrets.token_hex(8),
    )


def began(process: int) -> int | None:
    """When a process of this machine began, in ticks since it was started; 0 where that is not told, None for one that
    has ended.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # another user's
        pass
    fields = _line(f"/proc/{process}/stat").rpartition(")")[2].split()
    if not fields:
        return 0
    return None if fields[0] in "ZX" else int(fields[19])


def runs(holder: Holder, me: Holder) -> bool | None:
    """Whether the process of a lock still runs; None where that cannot be known from here."""
    same = (holder.host, holder.boot, holder.space) == (me.host, me.boot, me.space)
    if not same or holder.process < 1:
        return None
    found = began(holder.process)
    return found is not None and (not found or not holder.began or found == holder.began)


def _take(path: Path, me: Holder, say: Callable[[str], None], silence: float) -> Holder:
    """Makes the file, once nobody who lives has one there; HeldError otherwise."""
    text = json.dumps(dataclasses.asdict(me), indent=2) + "\n"
    for _ in range(ATTEMPTS):
        with writing(path):
            if _made(path, text):
                return me
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
            return me
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
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return Holder()
    usual = dataclasses.asdict(Holder())
    known = found if isinstance(found, dict) else {}
    return Holder(**{name: known[name] for name in usual if type(known.get(name)) is type(usual[name])})


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


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _unmake(folders: list[Path]) -> None:
    """Removes folders that are empty, the deepest first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
