"""From the start of a process to the end of its first update, with an empty and with a filled compilation cache."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The two stages of the main job, each from random parameters.
RUNS = {
    name: ("--config=configs/quickstart.py", f"--config.stages=('{name}',)", f"--config.stage.{name}.steps=1000")
    for name in ("sft", "grpo")
}
READY = "ready after"  # what a run says once its first update is done


def first_update(flags: tuple[str, ...], workdir: Path, cache: Path) -> float:
    """Seconds until a run's first update is done; it is ended there. RuntimeError when it ends by itself before."""
    command = [sys.executable, "-m", "train", *flags, f"--workdir={workdir}"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if READY in line:
                seconds = time.perf_counter() - started
                process.send_signal(signal.SIGKILL)
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first update")


def bench_startup(repeats: int) -> dict[str, Any]:
    """Medians, and the least and the most, of half as many starts of each kind: interleaved, each in a new folder."""
    found: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(max(repeats // 2, 1)):
            for name, flags in RUNS.items():
                cache = Path(folder) / f"cache-{name}-{repeat}"
                for kind, seconds in found[name].items():
                    seconds.append(first_update(flags, Path(folder) / f"{name}-{kind}-{repeat}", cache))
    return {
        name: {
            kind: {
                "seconds": round(statistics.median(values), 2),
                "spread": [round(min(values), 2), round(max(values), 2)],
            }
            for kind, values in kinds.items()
        }
        for name, kinds in found.items()
    }
