"""Many hosts that train one model: how they find each other, agree on a config, and hear that they are to stop.

A host is a process with devices of its own; all of them run the same program on the same config. Alone, a process has
nothing to agree on, and everything here does nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from data.sources.examples import Example
from data.verify.pool import Judge
from data.verify.verdict import Verdict
from store.processes import gathered, share

FLAGS = ("coordinator", "processes", "process")
# How long a host may be silent before the others give it up, and the first wait for all to arrive.
SILENCE, ARRIVAL = 30, 300  # seconds


class Hosts(NamedTuple):
    """Where the first process listens, how many there are, and which one this is."""

    coordinator: str
    processes: int
    process: int


def hosts_of(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Hosts | None, list[str]]:
    """Explicit hosts, from --coordinator=host:port --processes=n --process=i or from the environment's
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, if there are any; and the other arguments.

    Raises ValueError when some are given and others are not, or the numbers do not fit.
    """
    given = {name: a.split("=", 1)[1] for a in arguments for name in FLAGS if a.startswith(f"--{name}=")}
    left = [a for a in arguments if not a.startswith(tuple(f"--{name}=" for name in FLAGS))]
    names = dict(zip(FLAGS, ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), strict=True))
    found = given or {flag: environment[name] for flag, name in names.items() if environment.get(name)}
    if not found:
        return None, left
    if missing := [flag for flag in FLAGS if flag not in found]:
        words = ", ".join(f"--{flag} (or {names[flag]})" for flag in missing)
        raise ValueError(f"of several hosts each needs --coordinator, --processes and --process; missing: {words}")
    count, index = int(found["processes"]), int(found["process"])
    if not 0 <= index < count:
        raise ValueError(f"--process={index} is not in 0..{count - 1}, the numbers of {count} processes")
    return Hosts(found["coordinator"], count, index), left


def join(hosts: Hosts | None, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the others, explicit ones or those that JAX finds by itself on a TPU pod, in Slurm and under MPI."""
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": SILENCE, "initialization_timeout": ARRIVAL}
    if hosts:
        jax.distributed.initialize(*hosts, **patience)
    elif _is_found(environment):
        jax.distributed.initialize(**patience)


def lost(error: Exception) -> str:
    """What to say before an error that another host's end may have caused."""
    if not (jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError)):
        return ""
    return (
        "this host has lost another one, and stops. Start all hosts again with the same command: the run continues at"
        " its last checkpoint. What was seen of it: "
    )


def leave(code: int) -> None:
    """Ends a process of several at once: at a normal exit it would wait for the others, which wait for it."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_found(environment: Mapping[str, str]) -> bool:
    """Whether a cluster says that it started several processes."""
    several = any(int(environment.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def check_alike(config: dict[str, Any]) -> None:
    """Raises ValueError where the hosts were given different configs, before any of them trains."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).digest()[:8]
    every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
    different = [i for i, other in enumerate(every) if (other != every[0]).any()]
    if different:
        raise ValueError(
            f"the hosts were given different configs: process 0 has another than {different}; start all of them with"
            f" the same --config and flags (this is process {jax.process_index()})"
        )


class OverHosts(Judge):
    """A judge whose answers every host has: each verifies its share, and hears of the others' verdicts."""

    def __init__(self, own: Judge) -> None:
        """`own` judges the share of this host."""
        super().__init__()
        self._own = own

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
        """Returns the verdicts, the same on every host; all have to ask."""
        mine = share(len(texts))
        verdicts = self._own(examples[mine], texts[mine])
        counts = gathered([self._own.counts()])
        for name in counts[0]:
            setattr(self, name, sum(found[name] for found in counts))
        return [Verdict(**found) for found in gathered([dataclasses.asdict(verdict) for verdict in verdicts])]

    def close(self) -> None:
        """Closes this host's judge."""
        self._own.close()


def stops(asked: bool, step: int) -> bool:
    """Whether all hosts stop after this step: this one was asked to, or (of several) any was, some steps ago."""
    if jax.process_count() == 1:
        return asked
    return bool(multihost_utils.reached_preemption_sync_point(step))
