"""Tasks for the tests of pools; workers import this file by its plain name."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.verify.verdict import Verdict


@dataclass(frozen=True)
class Obedient:
    """Does what the text says: the ways in which a verifier goes wrong."""

    note: str = ""

    isolated = True

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        """Returns 1 for `right`, 0 for any other word it does not know."""
        if text == "hang":
            time.sleep(3600)
        if text == "grind":
            return Verdict(0.0, str(9 ** (9**9)), "never")
        if text == "child":
            child = subprocess.Popen(["sleep", "3600"])
            Path(self.note).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(3600)
        if text == "exit":
            os._exit(3)
        if text == "crash":
            os.abort()
        if text == "hoard":
            hoard = [bytearray(1 << 28) for _ in range(100)]
            return Verdict(1.0, None, str(len(hoard)))
        if text == "raise":
            raise KeyError(example["name"])
        if text == "two":
            return Verdict(2.0, None, "too much")
        return Verdict(float(text == "right"), f"{example['name']} {os.getpid()}", "read")


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
