"""What judging, filtering and writing cost a stage of rejection sampling, beside the sampler alone.

In turns; `ratio` is the stage's time per token over the sampler's own. The model has random weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.__main__ import MODEL
from benchmarks.strategies import in_turns
from configs import common
from rl.jobs.sample import Sampler, run
from store.records import read_lines
from train.console import Interrupt
from train.setup import prepare

PROMPTS, SAMPLES, NEW, CHUNK = 64, 8, 64, 16


def bench_rejection(repeats: int) -> dict[str, Any]:
    """The ratio over PROMPTS prompts with SAMPLES samples each, CHUNK prompts at a time."""
    with tempfile.TemporaryDirectory() as name:
        setup = prepare(stage(), Path(name), lambda text: None, {})
        params = jax.block_until_ready(setup.make_params())
        setup = dataclasses.replace(setup, make_params=lambda: params)

        def alone(turn: int) -> tuple[float, int]:
            sampler, tokens = Sampler(setup), 0
            started = time.perf_counter()
            for number in range(PROMPTS // CHUNK):
                tokens += int(sampler.chunk(params, number)[1].candidates.tokens.sum())
            return time.perf_counter() - started, tokens

        def whole(turn: int) -> tuple[float, int]:
            folder = Path(name) / str(turn)
            folder.mkdir()
            started = time.perf_counter()
            with Interrupt() as interrupt:
                run(dataclasses.replace(setup, workdir=folder), interrupt)
            took = time.perf_counter() - started
            return took, sum(row["tokens"] for row in read_lines(folder / "samples.jsonl"))

        found = in_turns(whole, alone, repeats)
        setup.judge.close()
    return found


def stage() -> ConfigDict:
    """A stage that keeps every sample."""
    config = common.base()
    config.name, config.algorithm = "rejection", "sample"
    config.model.update({name: value for name, value in MODEL.items() if name != "vocab_size"})
    config.data.update(task="addition", length=128)
    config.sample.update(n=SAMPLES, max_new_tokens=NEW, chunk=CHUNK, examples=PROMPTS, finished=False)
    config.sample.least = ConfigDict()
    return config
