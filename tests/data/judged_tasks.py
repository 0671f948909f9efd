"""Tasks for the tests of pools; workers import this file by its plain name."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.verify.verdict import Verdict


@dataclass(frozen=True)
class Obedient:
    """Does what the text says: the ways in which a verifier goes wrong. `notes`: where it notes its processes."""

    notes: str = ""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Returns 1 for `right`, 0 for any other word it does not know."""
        action = getattr(self, f"do_{text}", None)
        if action:
            action()
        if text == "raise":
            raise KeyError(example["name"])
        if text == "two":
            return Verdict(2.0, None, "too much")
        return Verdict(float(text == "right"), f"{example['name']} {os.getpid()}", "read")

    def do_hang(self) -> None:
        """Sleeps, with a child that sleeps too."""
        child = subprocess.Popen(["sleep", "3600"])
        self.note(os.getpid(), child.pid)
        time.sleep(3600)

    def do_grind(self) -> None:
        """Is stuck in one operation, in which no thread of the process can run."""
        self.note(os.getpid())
        self.note(len(str(9 ** (9**9))))

    def do_nap(self) -> None:
        """Takes a little time."""
        time.sleep(0.05)

    def do_exit(self) -> None:
        """Leaves without a word."""
        os._exit(3)

    def do_crash(self) -> None:
        """Dies of a signal."""
        os.abort()

    def do_babble(self) -> None:
        """Writes nonsense to whatever is open, as a worker that was taken over might."""
        for descriptor in range(3, 16):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"\0\0\0\4}{][")
        time.sleep(3600)

    def do_hoard(self) -> None:
        """Wants more memory than there is."""
        self.note(len([bytearray(1 << 30) for _ in range(100)]))

    def note(self, *numbers: int) -> None:
        """Leaves a file named by each number."""
        for number in numbers if self.notes else ():
            Path(self.notes, str(number)).touch()


@dataclass(frozen=True)
class Unready:
    """Cannot be got ready in a worker."""

    how: str

    isolated = True

    def warm_up(self) -> None:
        """Fails, one way or the other."""
        if self.how == "exit":
            os._exit(5)
        raise ImportError("no module for it")

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Is never reached."""
        raise AssertionError


@dataclass(frozen=True)
class Modules:
    """Names the heavy modules that a worker has imported."""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Returns them as what it read."""
        import sys

        return Verdict(1.0, ",".join(name for name in text.split(",") if name in sys.modules), "read")


@dataclass(frozen=True)
class Late:
    """Asks the package `data` for a name of its own."""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Returns whether the name is there."""
        from data import build_task

        return Verdict(float(callable(build_task)), None, "read")


@dataclass(frozen=True)
class Forger:
    """Judges `right` and `wrong`; at `forge` it sends what the example says, as a worker that was taken over might."""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Sends `example["sent"]`, JSON or raw bytes with NUMBER for the number of the request, at once or later."""
        if text == "forge":
            frame: Any = sys._getframe()
            while frame.f_code.co_name != "judge":
                frame = frame.f_back
            number, channel = frame.f_locals["number"], frame.f_back.f_locals["channel"]
            content = b"".join(framed(part, number) for part in example["sent"])
            threading.Timer(example.get("after", 0.0), channel.sendall, [content]).start()
            time.sleep(example.get("stays", 0.0))
        return Verdict(float(text == "right"), f"{example['name']} {os.getpid()}", "read")


def framed(part: Any, number: int) -> bytes:
    """A message as the channel carries it; bytes are sent as they are."""
    if isinstance(part, bytes):
        return part
    payload = json.dumps(part).replace('"NUMBER"', str(number)).encode()
    return len(payload).to_bytes(4, "big") + payload


@dataclass(frozen=True)
class Careless:
    """Returns the verdict that the example describes, whatever its types are."""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Returns it."""
        return Verdict(*example["verdict"])
