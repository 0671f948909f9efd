"""What the processes of one run tell each other; alone, a process has nothing to agree on."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def share(count: int) -> slice:
    """The part of so many items that this host looks after."""
    n, i = jax.process_count(), jax.process_index()
    return slice(count * i // n, count * (i + 1) // n)


def gathered(mine: list[Any]) -> list[Any]:
    """JSON-able items of all hosts, in the order of `share`; every host has to ask."""
    if jax.process_count() == 1:
        return mine
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(text)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    every = multihost_utils.process_allgather(padded)
    return [item for row, n in zip(every, lengths, strict=True) for item in json.loads(row[:n].tobytes())]


def agreed(value: bool) -> bool:
    """What the first process says, in every process; all of them wait for it."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))
