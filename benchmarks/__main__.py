"""Speed and memory, as JSON: python -m benchmarks [matmul sft decode grpo moe ...] [--repeats=8]

Every figure is a median over repeats of one process, and the matrix-product rate of the machine is measured between
them, so that a share of it means something on a machine whose clock swings.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from model.platform import restart_with_huge_pages

MODEL = dict(vocab_size=512, d_model=256, n_layers=6, n_heads=4, d_ff=768, max_length=256)


def seconds(action: Callable[[], Any], repeats: int) -> list[float]:
    """The times of `repeats` runs, sorted, after one that compiles."""
    import jax

    jax.block_until_ready(action())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(action())
        times.append(time.perf_counter() - started)
    return sorted(times)


def matmul_rate(repeats: int = 20, size: int = 1024) -> float:
    """The best fp32 matrix-product rate, in GFLOP/s."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / seconds(lambda: product(square), repeats)[0] / 1e9


def training_flops(model: Any, rows: int, length: int) -> float:
    """Forward and backward of one step: 6 per weight and token, and the attention products over the whole square."""
    from model.compute import flops
    from model.reports import Work

    c, tokens = model.config, rows * length
    attention = 12 * c.n_layers * c.n_heads * c.head_dim * length
    return float(flops(model, Work(tokens), trains=True) + tokens * attention)


def bench_sft(repeats: int, rows: int = 16, length: int = 128) -> dict[str, Any]:
    """SFT tokens per second of the real step (AdamW, clipping, guard), and the share of the matmul rate it reaches."""
    import jax
    import numpy as np

    from data.sources.batch import TokenRows
    from model import build
    from train.accumulate import UpdatePlan
    from train.objectives.losses import sft_objective
    from train.optimizer import make_optimizer
    from train.state import new_state
    from train.step import make_step

    model = build(MODEL)
    optimizer = make_optimizer(lr=1e-3, axes=model.axes())
    tokens = np.random.default_rng(0).integers(1, 512, (rows, length)).astype(np.int32)
    ones, positions = np.ones_like(tokens), np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = TokenRows(tokens=tokens, mask=ones.astype(np.float32), positions=positions, segments=ones)
    found = {}
    for micro in (None, 8, 4):
        step = make_step(sft_objective(model), optimizer, plan=UpdatePlan(micro))
        state = [new_state(model.init(jax.random.key(0)), optimizer, 0)]
        on_device = jax.device_put(batch)

        def once(step: Any = step, state: list[Any] = state, on_device: Any = on_device) -> Any:
            state[0], metrics = step(state[0], on_device)
            return metrics

        before = matmul_rate()
        times = seconds(once, repeats)
        rate = max(before, matmul_rate())
        middle = times[len(times) // 2]
        found[f"micro_batch_{micro or rows}"] = {
            "tokens_per_second": round(rows * length / middle),
            "milliseconds": round(middle * 1e3, 1),
            "share_of_matmul_rate": round(training_flops(model, rows, length) / middle / 1e9 / rate, 3),
            "matmul_gflops": round(rate, 1),
        }
    return found


def bench_decode(repeats: int, rows: int = 256, prompt: int = 32, new: int = 64) -> dict[str, Any]:
    """Decode tokens per second of a whole `generate` call, prefill included."""
    import jax
    import numpy as np

    from infer.sampler import generate
    from infer.sampling import SamplingParams
    from model import build

    model = build(MODEL)
    params = model.init(jax.random.key(0))
    prompts = np.random.default_rng(0).integers(1, 512, (rows, prompt))
    before = matmul_rate()
    sampling = SamplingParams(new)
    times = seconds(lambda: generate(model, params, prompts, jax.random.key(1), sampling).tokens, repeats)
    middle = times[len(times) // 2]
    rate = max(before, matmul_rate())
    return {
        "tokens_per_second": round(rows * new / middle),
        "milliseconds_per_step": round(middle / new * 1e3, 2),
        "matmul_gflops": round(rate, 1),
        "floor_milliseconds": decode_floor(model, rows, prompt, new, rate),
    }


def decode_floor(model: Any, rows: int, prompt: int, new: int, rate: float) -> dict[str, float]:
    """What one decode step must at least cost here: products at the matmul rate, and bytes of keys and values read."""
    import jax
    import jax.numpy as jnp

    from model.compute import flops
    from model.reports import Work

    c = model.config
    cache_bytes = 8 * rows * c.n_layers * c.n_kv_heads * c.head_dim * (prompt + new / 2)
    big = jnp.ones((16, 1024, 1024))
    total = jax.jit(jnp.sum)
    bandwidth = big.nbytes / seconds(lambda: total(big), 10)[0]
    products, reading = flops(model, Work(rows), trains=False) / rate / 1e9, cache_bytes / bandwidth
    return {
        "products": round(products * 1e3, 2),
        "cache": round(reading * 1e3, 2),
        "read_gb_s": round(bandwidth / 1e9, 1),
    }


def bench_block(name: str, repeats: int) -> Any:
    """The benchmark in a file of its own, benchmarks/<name>.py."""
    return getattr(importlib.import_module(f"benchmarks.{name}"), f"bench_{name}")(repeats)


BENCHMARKS: dict[str, Callable[[int], Any]] = {
    "matmul": lambda repeats: {"gflops": round(matmul_rate(5 * repeats), 1)},
    "sft": bench_sft,
    "decode": bench_decode,
    **{
        name: functools.partial(bench_block, name)
        for name in (
            "grpo",
            "moe",
            "mla",
            "peer",
            "mingru",
            "fp8",
            "depth",
            "ragged_depth",
            "verify",
            "checkpoint",
            "startup",
            "prepare",
            "meshes",
            "strategies",
            "pairs",
            "rejection",
        )
    },
}


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks`."""
    flags = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    flags.add_argument("names", nargs="*", default=list(BENCHMARKS), help=f"of {', '.join(BENCHMARKS)}")
    flags.add_argument("--repeats", type=int, default=8)
    return flags


def main() -> None:
    """Prints one JSON object with a key per benchmark."""
    options = parser().parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser().error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    found = {name: BENCHMARKS[name](options.repeats) for name in options.names}
    found["machine"] = {
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    restart_with_huge_pages(["-m", "benchmarks", *sys.argv[1:]])
    main()
