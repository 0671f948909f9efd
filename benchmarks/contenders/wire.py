"""How a contender talks to benchmarks/peers.py: asked with a line on stdin, it answers with a line of JSON.

Foreign interpreters run the contenders as scripts, so this file needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Wire:
    """A contender's end: its options, and the clock of the step that it was asked for.

    stdout belongs to the protocol from here on: whatever libraries print goes to stderr. `begin` waits without spinning
    until a step is wanted, and ends the process when none is wanted any more.
    """

    def __init__(self) -> None:
        """Reads the case and the setting, JSON objects, from the command line."""
        self.case, self.setting = (json.loads(argument) for argument in sys.argv[1:3])
        self._answers = os.fdopen(os.dup(1), "w")  # a duplicate is not inherited by processes started later
        os.dup2(2, 1)
        self._started = self._generated = 0.0
        self._lengths: list[int] = []

    def ready(self, **about: Any) -> None:
        """Says that steps may be asked for; `about` is kept in the report."""
        self._write({"ready": about})

    def begin(self) -> None:
        """Waits until a step is wanted, then starts the clock."""
        # A library's threads may hang on in an ordinary exit.
        if sys.stdin.readline().strip() != "step":
            os._exit(0)
        self._started = time.perf_counter()

    def generated(self, lengths: list[int]) -> None:
        """The samples of the step, so many tokens each, are there and have their rewards; the update follows."""
        self._generated, self._lengths = time.perf_counter(), lengths

    def end(self) -> None:
        """The update is done: stops the clock and answers."""
        now = time.perf_counter()
        times = {"generate": self._generated - self._started, "update": now - self._generated}
        self._write({"seconds": now - self._started, **times, "lengths": self._lengths})

    def _write(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
