"""One training step on eight virtual devices of this CPU, mesh by mesh: seconds, and bytes of a device.

Eight devices share the cores, so the times compare meshes with one another and not with one device: what a mesh adds is
messages and work that several devices do alike. Bytes are the compiler's own, of one device.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

DEVICES = 8
SIZE = dict(vocab_size=512, d_model=256, n_layers=4, n_heads=8, d_ff=1024, max_length=512)
EXPERTS = SIZE | dict(ffn="moe", moe=dict(n_experts=8, top_k=2, d_expert=512))
ROWS, LENGTH = 16, 256
CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "dense": (SIZE, {}),
    "data8": (SIZE, {"data": 8}),
    "fsdp8": (SIZE, {"fsdp": 8}),
    "fsdp4-tensor2": (SIZE, {"fsdp": 4, "tensor": 2}),
    "context4-data2": (SIZE, {"context": 4, "data": 2}),
    "experts": (EXPERTS, {}),
    "experts: fsdp8": (EXPERTS, {"fsdp": 8}),
    "experts: expert4-fsdp2": (EXPERTS, {"expert": 4, "fsdp": 2}),
}


def bench_meshes(repeats: int) -> dict[str, Any]:
    """Each case's median step and bytes: in a process of its own, since devices are counted when JAX starts."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.meshes", str(repeats)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"rows": ROWS, "length": LENGTH, "one_device": ["dense", "experts"], "cases": found}


class Bench:
    """One case: its compiled step, its state, its batch."""

    def __init__(self, settings: dict[str, Any], shape: dict[str, int]) -> None:
        """Compiles on a mesh of this shape; an empty one is one device."""
        import jax
        import jax.numpy as jnp
        from ml_collections import ConfigDict

        from data.sources.batch import TokenRows
        from model import build
        from model.sharding import make_mesh
        from train.batches import on_devices
        from train.objectives.losses import sft_objective
        from train.optimizer import make_optimizer
        from train.state import make_state
        from train.step import make_step

        model = build(settings)
        mesh = make_mesh(shape) if shape else None
        optimizer = make_optimizer(lr=1e-3, axes=model.axes())
        draw = jax.jit(model.init, out_shardings=None if mesh is None else model.shardings(mesh))
        config = ConfigDict({"seed": 0, "optimizer": {"ema": 0.0, "memory": "device"}})
        self.state = make_state(lambda: draw(jax.random.key(0)), optimizer, config, mesh)
        tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, settings["vocab_size"])
        ones = jnp.ones_like(tokens)
        positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
        batch = TokenRows(tokens=tokens, mask=ones.astype(jnp.float32), positions=positions, segments=ones)
        self.batch = on_devices(batch, mesh)
        step = make_step(sft_objective(model), optimizer, mesh)
        self.compiled = step.lower(self.state, self.batch).compile()
        self.seconds: list[float] = []

    def run(self) -> None:
        """One step, timed."""
        import jax

        started = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append(time.perf_counter() - started)

    def figures(self) -> dict[str, Any]:
        """What was found; the first step is left out."""
        memory, seconds = self.compiled.memory_analysis(), self.seconds[1:]
        return {
            "seconds": round(statistics.median(seconds), 3),
            "spread": [round(min(seconds), 3), round(max(seconds), 3)],
            "state_and_batch_mb": round(memory.argument_size_in_bytes / 1e6, 1),
            "temporaries_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        }


def main(repeats: int) -> None:
    """Runs the cases in turns and prints one line of JSON."""
    cases = {name: Bench(*case) for name, case in CASES.items()}
    for _ in range(repeats + 1):
        for case in cases.values():
            case.run()
    print(json.dumps({name: case.figures() for name, case in cases.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
