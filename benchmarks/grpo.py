"""One GRPO step in parts: 16 prompts x 8 samples, prompts of 16 tokens, answers of one length or of all lengths.

`plain` learns from rows [prompt | completion] of the full width; `planned` read every prompt once and leave out empty
columns and gradients of nothing (train/accumulate.py), as `python -m train` does. Both learn from the same samples.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.__main__ import MODEL
from infer.sampler import Rollout, generate
from infer.sampling import Execution, SamplingParams
from model import build
from model.lm import Model
from rl.advantages import advantages
from rl.batch import RolloutRows, in_order, take, training_batch
from rl.grpo import grpo_objective, reader, without_advantage
from train.accumulate import UpdatePlan, per_token
from train.completions import completion_logps, longest, truncate, widths_of
from train.optimizer import make_optimizer
from train.state import TrainState, new_state
from train.step import make_step

PROMPTS, SAMPLES, LENGTH = 16, 8, 16
CASES: dict[str, dict[str, Any]] = {
    "fixed": dict(new=64, stop=(), slots=128),
    # Eight of 512 tokens, about equally likely: lengths are geometric, of mean 64.
    "ragged": dict(new=512, stop=tuple(range(8)), slots=32),
}
WIDTHS = 8


def update_plan_of(model: Model, new: int, micro_batch: int | None) -> UpdatePlan:
    """All that a run without a KL can save."""
    return UpdatePlan(micro_batch, reader(model), without_advantage, widths_of(new, WIDTHS), longest, truncate)


class Learner:
    """The update of one way of learning, and the log-probs of a reference as that way measures them."""

    def __init__(self, model: Model, plan: UpdatePlan) -> None:
        """Compiles nothing yet."""
        optimizer = make_optimizer(lr=1e-6, axes=model.axes())
        self.state: TrainState = new_state(model.init(jax.random.key(0)), optimizer, 0)
        self.sorted = plan.read is not None
        objective = grpo_objective(model, aggregate="token_mean")
        self.step = make_step(objective, optimizer, plan=plan)

        def logps(params: Any, batch: RolloutRows) -> tuple[jax.Array, ...]:
            return (completion_logps(model, params, batch)[0],)

        self.score = jax.jit(functools.partial(per_token, logps, plan=plan))

    def batch(self, rollout: Rollout, no_gradient: int = 0) -> RolloutRows:
        """The batch of a rollout on the device; the reward is the share of odd tokens, 0 in `no_gradient` groups."""
        rewards = (rollout.tokens % 2 * rollout.mask).sum(1) / rollout.lengths
        rewards[: no_gradient * SAMPLES] = 0
        gains = np.asarray(advantages(rewards.reshape(PROMPTS, SAMPLES).astype(np.float32))).reshape(-1)
        batch = training_batch(rollout, gains)
        return take(batch, in_order(rollout.mask.sum(1), gains)) if self.sorted else jax.device_put(batch)

    def learn(self, batch: RolloutRows) -> Any:
        """One update; returns its metrics."""
        self.state, metrics = self.step(self.state, batch)
        return metrics


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    started = time.perf_counter()
    result = jax.block_until_ready(action())
    return time.perf_counter() - started, result


def bench_case(repeats: int, new: int, stop: tuple[int, ...], slots: int, micro_batch: int = 16) -> dict[str, Any]:
    """Medians over steps of both ways in turns, the plain one in the first two alone where it is slow."""
    model = build(MODEL | {"max_length": LENGTH + new})
    ways = {
        "plain": Learner(model, UpdatePlan(micro_batch)),
        "planned": Learner(model, update_plan_of(model, new, micro_batch)),
    }
    asked = np.random.default_rng(0).integers(8, 512, (PROMPTS, LENGTH))
    seconds: dict[str, list[float]] = {"generate": []}
    lengths = []
    for n in range(repeats + 1):
        sampling = SamplingParams(new, stop=stop, n=SAMPLES, execution=Execution(slots=slots))
        sample = functools.partial(generate, model, ways["planned"].state.params, asked, jax.random.key(n), sampling)
        spent, rollout = timed(sample)
        seconds["generate"].append(spent)
        lengths.append(rollout.lengths.mean())
        for name, way in ways.items():
            if name == "plain" and n > 2 and new > 64:
                continue
            batch = way.batch(rollout)
            spent, _ = timed(functools.partial(way.score, way.state.params, batch))
            seconds.setdefault(f"{name} log-prob", []).append(spent)
            spent, _ = timed(functools.partial(way.learn, batch))
            seconds.setdefault(f"{name} update", []).append(spent)
        half = ways["planned"].batch(rollout, PROMPTS // 2)
        spent, _ = timed(functools.partial(ways["planned"].learn, half))
        seconds.setdefault("planned update, half of the groups without advantage", []).append(spent)
    middle = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    step = middle["generate"] + middle["planned update"]
    return {
        **{name: round(value, 3) for name, value in middle.items()},
        "mean_length": round(float(np.mean(lengths[1:])), 1),
        "seconds_of_generate_and_update": round(step, 3),
        "tokens_per_second": round(float(np.mean(lengths[1:])) * PROMPTS * SAMPLES / step),
        "update_plain_over_planned": round(middle["plain update"] / middle["planned update"], 2),
    }


def bench_memory(vocab: int = 32_768, new: int = 64, micro_batch: int = 16) -> dict[str, Any]:
    """What the update of both ways needs besides its arguments, next to the logits that it never holds."""
    model = build(MODEL | {"vocab_size": vocab, "max_length": LENGTH + new})
    rows = PROMPTS * SAMPLES
    tokens, blank = np.ones((rows, new), np.int32), np.zeros((rows, new), np.float32)
    prompts = np.ones((PROMPTS, LENGTH), np.int32)
    lengths, ended = np.full(rows, new), np.ones(rows, bool)
    rollout = Rollout(
        tokens, blank, blank + 1, lengths, ended, prompts, prompts.astype(bool), np.repeat(np.arange(PROMPTS), SAMPLES)
    )
    found = {}
    for name, plan in (("plain", UpdatePlan(micro_batch)), ("planned", update_plan_of(model, new, micro_batch))):
        way = Learner(model, plan)
        lowered = way.step.lower(way.state, way.batch(rollout))
        found[f"{name}_megabytes"] = round(lowered.compile().memory_analysis().temp_size_in_bytes / 2**20)
    logits = {"logits_of_all_rows_megabytes": rows * (LENGTH + new) * vocab * 4 // 2**20}
    part = {"logits_of_a_micro_batch_megabytes": micro_batch * (LENGTH + new) * vocab * 4 // 2**20}
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.abstract()))
    return found | logits | part | {"weights_megabytes": weights // 2**20, "vocabulary": vocab}


def bench_grpo(repeats: int) -> dict[str, Any]:
    """Answers of 64 tokens, answers of all lengths up to 512, and memory."""
    return {name: bench_case(repeats, **case) for name, case in CASES.items()} | {"memory": bench_memory()}
