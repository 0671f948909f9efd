"""What seeded runs come to, as digests: python -m benchmarks.digests [--runs sft_packed ...] [--keep folder] [--record]

A run is a function of its config: on one CPU device the same run writes the same samples, the same metrics (but for
clocks) and the same parameters, whoever changed the code in between. Prints {run: {samples, metrics, params}}, SHA-256
of each. tests/golden/digests.json holds them for each version of JAX and kind of CPU, whose kernels add up in different
orders; --record writes them there, and CHANGELOG.md then says why they changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "tests" / "golden" / "digests.json"
# Set before JAX is imported: one device, one thread for each product, and the instructions that every x86 machine of
# the last ten years has; little optimised, for these runs compile longer than they train.
FLAGS = (
    "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX2"
    " --xla_backend_optimization_level=0"
)
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "SAGAX_NO_RESTART": "1", "MPLBACKEND": "Agg"}

SFT: dict[str, Any] = {"algorithm": "sft", "steps": 4}
# Tokens cost something: an untrained model is never right, and equal rewards teach nothing.
GRPO: dict[str, Any] = {"algorithm": "grpo", "steps": 4, "optimizer.lr": 1e-3, "rl.token_cost": 0.05}
RECURRENT = {"model.depth": "recurrent", "model.n_layers": 3, "model.recurrent.draw": "poisson"}
RUNS: dict[str, dict[str, Any]] = {
    "sft_packed": SFT | {"data.pack": True, "data.length": 32, "micro_batch": 4, "optimizer.ema": 0.9},
    "grpo_kl": GRPO | {"rl.beta": 0.05, "rl.entropy_coef": 0.01},
    "grpo_refill": GRPO | {"rl.refill": 1, "rl.minibatches": 2, "rl.epochs": 2, "steps": 8},
    "grpo_carry": GRPO | {"rl.carry": 1, "rl.slots": 8},
    "moe_routes": GRPO | {"model.ffn": "moe", "model.moe.n_experts": 4, "rl.replay_routes": True, "rl.minibatches": 2},
    "recurrent_drawn": GRPO | RECURRENT | {"rl.depth": "drawn", "model.recurrent.mean": 2},
    "peer_rows": SFT | {"model.ffn": "peer", "model.peer.n_experts": 64, "model.peer.heads": 2, "model.peer.top_k": 4},
    "thoughts": {"stages": ("coconut", "grpo")},
}
STAGES: dict[str, dict[str, Any]] = {
    "coconut": {"algorithm": "coconut", "steps": 4, "thoughts": {"stage_steps": 2, "max_stage": 1}},
    "grpo": {"algorithm": "grpo", "steps": 2, "optimizer": {"lr": 1e-3}, "rl": {"token_cost": 0.05}},
}


def config_of(name: str) -> Any:
    """The config of one of RUNS."""
    from ml_collections import ConfigDict

    from configs import common
    from train.settings import override

    config = common.base()
    config.name = name
    config.model.update(d_model=32, n_layers=2, n_heads=2, d_ff=48, max_length=64, init_std=0.1)
    config.optimizer.lr = 3e-3
    config.rl.update(prompts=3, samples=4, max_new_tokens=6)
    config.eval.update(examples=8, max_new_tokens=6, every=2, samples=2, temperature=1.0)
    config.checkpoint.every = 0
    if name == "thoughts":
        config.data.update(task="multiplication", batch_size=8)
        config.data.options = ConfigDict(dict(digits=2, train_size=64, test_size=8))
        config.stage = ConfigDict(STAGES)
    else:
        config.data.update(task="addition", length=24, batch_size=8)
        config.data.options = ConfigDict(dict(digits=1, direct_share=1.0, train_size=64, test_size=8))
    return override(config, RUNS[name])[0]


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of a run's samples, of its metrics without clocks, and of its parameters; of a pipeline all stages'."""
    stages = json.loads((folder / "config.json").read_text())["stages"]
    folders = [folder / stage for stage in stages] or [folder]
    samples = b"".join((at / "samples.jsonl").read_bytes() for at in folders)
    lines = [json.loads(line) for at in folders for line in (at / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not is_beside(key)} for line in lines]
    return {
        "samples": hashlib.sha256(samples).hexdigest(),
        "metrics": hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest(),
        "params": params_digest(folders[-1]),
    }


def is_beside(name: str) -> bool:
    """Whether a metric says nothing of what was learnt: seconds, a rate of them, or what the run has cost."""
    return any(word in name for word in ("time", "seconds", "per_second", "compute/"))


def params_digest(folder: Path) -> str:
    """SHA-256 of names, shapes, types and bytes of a run's last parameters."""
    import jax
    import numpy as np

    from infer.load import load_run

    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(folder).params):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def measure(name: str, folder: Path) -> dict[str, str]:
    """Trains one of RUNS in a folder."""
    from train.loop import run

    run(config_of(name), folder)
    return digests_of(folder)


def machine() -> str:
    """The row of the table, JAX and the CPU: as in "jax 0.10.2, AuthenticAMD family 25 model 1"."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().split("\n\n")[0].splitlines() if cpu.is_file() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    kind = f"{told.get('vendor_id', platform.machine())} family {told.get('cpu family')} model {told.get('model')}"
    return f"jax {importlib.metadata.version('jax')}, {kind}"


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """The table: {machine: {run: digests}}."""
    return json.loads(TABLE.read_text()) if TABLE.is_file() else {}


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.digests`."""
    flags = argparse.ArgumentParser("python -m benchmarks.digests", description=__doc__)
    flags.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    flags.add_argument("--keep", help="a folder for the runs, which are deleted without one")
    flags.add_argument("--record", action="store_true", help=f"write them to {TABLE.name}, in this machine's row")
    return flags


def main(arguments: list[str]) -> None:
    """Prints one JSON object."""
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as spare:
        base = Path(options.keep or spare)
        with contextlib.redirect_stdout(sys.stderr):  # the runs' own words
            found = {name: measure(name, base / name) for name in options.runs}
    if options.record:
        table = recorded()
        table[machine()] = table.get(machine(), {}) | found
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    if os.environ.get("XLA_FLAGS") != FLAGS:
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.digests", *sys.argv[1:]], os.environ | ENVIRONMENT)
    main(sys.argv[1:])
