"""The lock of a run in a bucket: an object that says who trains there, with a sign of life in its metadata.

It is written on the condition that there is none, renewed, replaced and removed on the condition that it is still the
same object (its generation), so that whatever happens in between, one process at most believes that it holds the lock.
A lock from another machine is watched for as long as a dead one would be silent; no clock of that machine is asked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from store.holder import ATTEMPTS, LOOK, HeldError, Holder, content_of, parse_holder, runs
from store.objects import Stamp, create, delete, renew, stamp


@dataclasses.dataclass(frozen=True)
class ObjectLock:
    """A lock that is an object, of this generation."""

    path: Path
    generation: str

    def renew(self) -> None:
        """Changes the object's metadata."""
        renew(self.path, self.generation)

    def remove(self) -> None:
        """Deletes the object."""
        delete(self.path, self.generation)


def take_object(path: Path, me: Holder, say: Callable[[str], None], silence: float) -> ObjectLock:
    """Writes the object, once nobody who lives has one there; HeldError otherwise."""
    content = content_of(me).encode()
    for _ in range(ATTEMPTS):
        created = create(path, content)
        first, holder = stamp(path), _holder(path)
        if first is None or holder is None:  # it went away between two requests
            continue
        if created or holder == me:  # a request that was sent twice finds its own object
            return ObjectLock(path, first.generation)
        alive = runs(holder, me)
        if alive is None:
            alive = _watched(path, first, holder, say, silence)
        if alive:
            raise HeldError(path, holder)
        if alive is not None and delete(path, first.generation):
            say(f"{path} was left by {holder}, which is no more; it is taken over")
    raise OSError(f"{path} could not be made in {ATTEMPTS} attempts, while others made and removed it")


def _holder(path: Path) -> Holder | None:
    try:
        return parse_holder(path.read_bytes())
    except FileNotFoundError:
        return None


def _watched(path: Path, first: Stamp, holder: Holder, say: Callable[[str], None], silence: float) -> bool | None:
    """Watches a lock until it is renewed (True), or was not for `silence` seconds (False); None when it is gone or has
    become another's.
    """
    say(f"{path} is held by {holder}; waiting up to {silence:.0f} s for a sign of life from there")
    until = time.monotonic() + silence
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(LOOK, left))
        last = stamp(path)
        if last is None or last.generation != first.generation:
            return None
        if last != first:
            return True
    return False
