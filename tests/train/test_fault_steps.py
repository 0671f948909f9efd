"""Inside a run: batches that are not finite, and a verifier's process that is killed while it judges."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import train.loop
import train.setup
from data.verify.pool import Pool
from data.verify.worker_handle import Worker
from store.records import read_lines, read_metrics
from tests.train.test_loop import config
from tests.trunk import trees_equal
from train.loop import run


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)


@pytest.mark.parametrize(("kind", "array"), [("sft", "mask"), ("grpo", "advantages")])
def test_a_batch_that_is_not_finite_moves_nothing_and_several_stop_the_run(
    kind: str, array: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is skipped and the run goes on; after two in a row it stops, and the last of them is kept."""
    poisoned, states = {1, 3, 4}, []
    build_algorithm, step_of = train.loop.build_algorithm, train.loop.step_of

    def poisoning(setup: Any) -> Any:
        algorithm = build_algorithm(setup)
        following = algorithm.source.next

        def next_batch(params: Any, step: int) -> Any:
            batch = following(params, step)
            bad = {array: getattr(batch, array) * np.float32("nan")} if step in poisoned else {}
            return batch.replace(**bad)

        monkeypatch.setattr(algorithm.source, "next", next_batch)
        return algorithm

    def watched(*arguments: Any) -> Any:
        step = step_of(*arguments)

        def once(state: Any, batch: Any) -> Any:
            states.append(jax.device_get(state))
            return step(state, batch)

        return once

    monkeypatch.setattr(train.loop, "build_algorithm", poisoning)
    monkeypatch.setattr(train.loop, "step_of", watched)
    with pytest.raises(FloatingPointError, match=r"2 updates in a row, up to step 5; none of them was applied"):
        run(config(kind, steps=9, max_bad_steps=2, optimizer__ema=0.9, rl__entropy_coef=0.01), tmp_path)
    counts = dict(bad=0, skipped=0, step=0)
    for n, pair in enumerate(itertools.pairwise(states)):
        same = trees_equal(*(dataclasses.replace(state, **counts) for state in pair))
        assert same == (n in poisoned), n
    assert [int(state.skipped) for state in states[:5]] == [0, 0, 1, 1, 2]
    records = read_metrics(tmp_path)
    assert [r["bad"] for r in records] == [0, 1, 0, 1, 2]
    assert np.isnan(records[1]["loss"]) and np.isfinite(records[2]["loss"])
    with np.load(tmp_path / "bad_batch_5.npz") as kept:
        assert np.isnan(kept[array]).any()
    assert not (tmp_path / "result.json").exists()


def test_a_killed_verifier_costs_one_answer_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 between a question and its answer: that answer scores nothing, another process takes the place."""
    asked, ask = [], Worker.ask

    def asking(self: Worker, *arguments: Any, **named: Any) -> None:
        asked.append(self)
        if len(asked) != 3:
            return ask(self, *arguments, **named)
        os.kill(self._process.pid, signal.SIGSTOP)  # so that it cannot answer first
        ask(self, *arguments, **named)
        os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(Worker, "ask", asking)
    monkeypatch.setattr(train.setup, "judge_of", lambda task, **limits: Pool(task, workers=2, seconds=60.0))
    result = run(config("grpo", eval__every=1, steps=2), tmp_path)
    assert (result["status"], result["steps"]) == ("complete", 2)
    reasons = [r["reason"] for r in read_lines(tmp_path / "samples.jsonl") if r["kind"] == "rollout"]
    assert [reason for reason in reasons[:8] if "died" in reason] == ["the verifier died (by SIGKILL)"]
    assert not [reason for reason in reasons[8:] if "died" in reason]
