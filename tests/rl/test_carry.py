"""Groups that a rollout leaves unfinished go on in the next: nothing is lost, and nothing waits for the longest."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from rl.experience import completion_start
from rl.source import RolloutSource
from settings.rl import RLConfig
from tests.rl.test_rollout import RULES, source
from tests.trunk import tiny_params, trees_equal

P, CARRY, G, T = 3, 2, 4, 40
FLYING = dataclasses.replace(RULES, samples=G, max_new_tokens=T, prompts=P, carry=CARRY, stop=("1", "3", "5"))


def flying() -> RolloutSource:
    """A source with two groups more in flight than it gives."""
    return source(FLYING, prompts=P)


def params_at(step: int) -> Any:
    """Parameters that move from step to step."""
    return jax.tree.map(lambda x: x * (1 + 0.05 * step), tiny_params())


def prompt_of(item: dict[str, Any]) -> str:
    """What an item in flight asks."""
    return item["example"]["prompt"]


def test_batches_are_full_and_no_prompt_is_lost() -> None:
    rollouts, learnt, carried = flying(), [], []
    for step in range(5):
        batch = rollouts.next(params_at(step), step)
        mask = batch["mask"][:, completion_start(batch) + 1 :]
        assert mask.shape == (P * G, T)
        assert (mask.sum(1) > 0).all() and (np.diff(mask, axis=1) <= 0).all()
        carried.append(rollouts.stats()["carried/tokens"])
        learnt += [record["prompt"] for record in rollouts.samples()[::G]]
        assert len(rollouts.worker.arrays()["flight"]["lengths"]) == CARRY * G
    assert carried[0] == 0 and 0 < max(carried) < 1
    state = rollouts.worker.state()["flight"]
    asked = learnt + [prompt_of(item) for item in (*state["begun"], *state["waiting"])]
    prompts = flying().worker._prompts
    assert sorted(asked) == sorted(prompt_of(item) for _ in range(len(asked) // P) for item in prompts.next())


def test_a_rollout_does_not_wait_for_its_longest_sample() -> None:
    long = dataclasses.replace(FLYING, stop=("1",))
    alone, together = (source(dataclasses.replace(long, carry=carry), prompts=P) for carry in (0, CARRY))
    steps = [0, 0]
    for step in range(6):
        for i, rollouts in enumerate((alone, together)):
            rollouts.next(tiny_params(), step)
            steps[i] += rollouts.stats()["sampling/decode_steps"]
    assert steps[1] < steps[0]


def test_tokens_keep_the_log_probs_of_the_model_that_said_them() -> None:
    rollouts = flying()
    rollouts.next(params_at(0), 0)
    said = rollouts.worker.arrays()["flight"]
    assert said["lengths"].any()
    batch = rollouts.next(jax.tree.map(lambda x: x * 0.5, tiny_params()), 1)
    tokens = batch["tokens"][:, completion_start(batch) + 1 :]
    found = 0
    for begun, logps, length in zip(said["tokens"], said["logps"], said["lengths"], strict=True):
        same = (tokens[:, :length] == begun[:length]).all(1) & (length > 1)
        found += any(np.array_equal(old[:length], logps[:length]) for old in batch["old_logps"][same])
    assert found, "some of what had begun is complete now, word for word and number for number"


def test_what_is_in_flight_survives_a_restart() -> None:
    straight, first = flying(), flying()
    for step in range(2):
        straight.next(params_at(step), step)
        first.next(params_at(step), step)
    again = flying()
    again.restore(json.loads(json.dumps(first.state())))
    again.restore_arrays(jax.tree.map(np.array, first.arrays()))
    for step in range(2, 4):
        assert trees_equal(again.next(params_at(step), step), straight.next(params_at(step), step))
        assert again.samples() == straight.samples()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"carry": 5}, "from 0 to rl.prompts=4"),
        ({"carry": 2, "refill": 1}, "rl.refill"),
        ({"carry": 2, "depth": "drawn"}, "rl.depth=drawn"),
        ({"carry": 2, "slots": 1}, "a quarter of 12 samples"),
    ],
)
def test_what_cannot_be_carried(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RLConfig(**{"prompts": 4, "samples": 2} | changes)
