"""Sagax's GRPO step, for benchmarks/peers.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from wire import Wire

from benchmarks.grpo import CASES, update_plan_of
from infer.sampler import generate
from infer.sampling import Execution, SamplingParams
from model import build
from rl.advantages import advantages
from rl.batch import in_order, take, training_batch
from rl.grpo import grpo_objective
from train.optimizer import make_optimizer
from train.state import new_state
from train.step import make_step


def sagax_step(wire: Wire) -> Callable[[int], Any]:
    """Step number n: generate, reward, update. As in a run without a KL term, no reference scores the samples."""
    case, sizes = wire.case, wire.case["model"]
    model = build({**sizes, "max_length": case["length"] + case["new"]})
    params = model.init(jax.random.key(0))
    params["final_norm"]["scale"] *= case["norm"]
    optimizer = make_optimizer(lr=case["lr"], axes=model.axes())
    state = [new_state(params, optimizer, 0)]
    objective, plan = (
        grpo_objective(model, aggregate="token_mean"),
        update_plan_of(model, case["new"], wire.setting["rows"]),
    )
    update = make_step(objective, optimizer, plan=plan)
    prompts = np.array(case["prompts"])
    execution = Execution(slots=CASES["ragged" if case["stop"] else "fixed"]["slots"])
    sampling = SamplingParams(case["new"], stop=tuple(case["stop"]), n=case["samples"], execution=execution)

    def step(n: int) -> Any:
        rollout = generate(model, state[0].params, prompts, jax.random.key(n), sampling)
        rewards = (rollout.tokens % 2).sum(1) / rollout.lengths
        gains = advantages(rewards.reshape(len(prompts), -1).astype(np.float32))
        wire.generated(rollout.lengths.tolist())
        batch = training_batch(rollout, np.asarray(gains).reshape(-1))
        state[0], metrics = update(state[0], take(batch, in_order(rollout.mask.sum(1), batch.advantages)))
        return jax.block_until_ready(metrics)

    return step


def main() -> None:
    """Answers until nobody asks."""
    wire = Wire()
    step = sagax_step(wire)
    wire.ready(jax=jax.__version__, threads="XLA's own")
    n = 0
    while True:
        wire.begin()
        step(n)
        wire.end()
        n += 1


if __name__ == "__main__":
    main()
