"""What sampling took: prompts read, tokens drawn, iterations run, whatever else a rollout holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from infer.continuation import empty_continuation
from infer.sampler import Rollout
from infer.work import sampling_work

LENGTHS = np.array([3, 1, 4, 4])  # two samples of each of two prompts, of 5 and of 2 tokens
PROMPT = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)


def rollout(**changes: Any) -> Rollout:
    blank = np.zeros((4, 4), np.int32)
    found = Rollout(
        tokens=blank,
        logps=blank.astype(np.float32),
        mask=blank.astype(np.float32),
        lengths=LENGTHS,
        finished=np.ones(4, bool),
        prompts=np.zeros(PROMPT.shape, np.int32),
        prompt_mask=PROMPT,
        group_of=np.array([0, 0, 1, 1]),
    )
    return dataclasses.replace(found, **changes)


def depths(*by_sample: int) -> np.ndarray:
    return np.array(by_sample)[:, None] * (np.arange(4) < LENGTHS[:, None])


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    found = sampling_work(rollout())
    assert (found.tokens, found.iterations) == (12 + 7, None)
    deep = sampling_work(rollout(depth=depths(3, 3, 3, 3)))
    assert (deep.tokens, deep.iterations) == (12 + 7, 3 * (12 + 7))


def test_samples_with_depths_of_their_own_read_it_at_theirs() -> None:
    found = sampling_work(rollout(depth=depths(1, 2, 3, 4)), by_sample=True)
    assert found.tokens == 12 + 2 * 7
    assert found.iterations == 1 * (3 + 5) + 2 * (1 + 5) + 3 * (4 + 2) + 4 * (4 + 2)


def test_a_prefix_is_read_again_and_not_drawn_again() -> None:
    """Sample 0 had two tokens, sample 1 was finished: its prompt is read for nobody else."""
    before = dataclasses.replace(empty_continuation(4, 4), lengths=np.array([2, 1, 0, 0]))
    found = sampling_work(rollout(depth=depths(2, 9, 3, 3)), before)
    assert found.tokens == (1 + 5 + 2) + (4 + 4 + 2)
    assert found.iterations == 2 * (1 + 5 + 2) + 3 * (4 + 4 + 2)


def test_what_went_on_with_nothing_took_nothing() -> None:
    before = dataclasses.replace(empty_continuation(4, 4), lengths=LENGTHS)
    assert sampling_work(rollout(), before).tokens == 0
