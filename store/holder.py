"""Who holds the lock of a run: what the lock says, and whether that process still runs."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
from pathlib import Path

from store.json_files import parse_json, without_surrogates
from store.run_directory import resume_command

LOOK = 0.5  # seconds between two looks at a lock that may be dead
ATTEMPTS = 200  # at making a lock, while others make and remove it


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
    start = began(holder.process)
    return start is not None and (not start or not holder.began or start == holder.began)


def content_of(holder: Holder) -> str:
    """What a lock holds."""
    return json.dumps(dataclasses.asdict(holder), indent=2) + "\n"


def parse_holder(content: bytes) -> Holder:
    """The holder that a lock names, an unknown one where it is no such text."""
    try:
        value = parse_json(content)
    except ValueError:
        return Holder()
    usual = dataclasses.asdict(Holder())
    known = value if isinstance(value, dict) else {}
    return Holder(**{name: known[name] for name in usual if type(known.get(name)) is type(usual[name])})


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
