"""Rollouts chosen, joined, dealt into updates and sampled ahead: the rows are always those that were sampled."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.sources.examples import Example
from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.tasks.base import Verdict
from data.verify.pool import judge_of
from rl.batch import RolloutRows
from rl.experience import Experience, choose, join
from rl.rollout import RolloutOptions, RolloutWorker
from rl.source import RolloutSource
from tests.rl.test_rollout import RULES, Digits, source
from tests.trunk import TOKENIZER, tiny, tiny_params, trees_equal
from train.completions import joined_rows


def test_groups_are_chosen_and_joined_row_by_row() -> None:
    """Whatever is chosen of joined experiences is what each of them held, with more padding at most."""
    parts = [sampled_by(source(prompts=2, seed=seed), step) for seed, step in ((5, 0), (6, 3))]
    both = join(parts)
    assert both.rewards.shape == (4, 4)
    assert both.rollout.steps == sum(part.rollout.steps for part in parts)
    kept = choose(both, np.array([3, 0]))
    for place, (part, group) in enumerate(((parts[1], 1), (parts[0], 0))):
        rows, own = slice(place * 4, place * 4 + 4), slice(group * 4, group * 4 + 4)
        for name in ("tokens", "logps", "mask", "lengths", "finished"):
            np.testing.assert_array_equal(getattr(kept.rollout, name)[rows], getattr(part.rollout, name)[own])
        seen = part.rollout.prompt_mask[group] > 0
        width = int(seen.sum())
        np.testing.assert_array_equal(kept.rollout.prompts[place][-width:], part.rollout.prompts[group][seen])
        assert not kept.rollout.prompt_mask[place][:-width].any()
        assert kept.texts[rows] == part.texts[own]
        assert kept.examples[place] == part.examples[group]
        np.testing.assert_array_equal(kept.rewards[place], part.rewards[group])
        np.testing.assert_array_equal(kept.scored.parts["accuracy"][rows], part.scored.parts["accuracy"][own])
    assert join(parts[:1]) is parts[0]


def sampled_by(rollouts: RolloutSource, step: int) -> Experience:
    """One round of a source."""
    rollouts.worker._times = dict.fromkeys(("generate", "reward", "logps"), 0.0)
    return rollouts.worker._round(tiny_params(), step, 0)


@dataclass(frozen=True)
class Rare(Digits):
    """Only every third prompt can be answered right, and then by its first character."""

    def verify(self, example: Example, text: str) -> Verdict:
        """Right for short prompts that are answered with an even digit first."""
        right = example["prompt"] == "1+=" and text[:1] in tuple("02468+")
        return Verdict(float(right), text, "judged")


def refilled(rounds: int, **options: Any) -> RolloutSource:
    """A source of three prompts, most of which teach nothing, with so many further rounds."""
    asked = prompt_source(Rare(), TOKENIZER, PromptRows(split="train", batch_size=3, seed=0))
    rules = replace(RULES, refill=rounds, **options)
    worker = RolloutWorker(tiny(), asked, Rare(), TOKENIZER, rules, RolloutOptions(seed=5, say=lambda _: None))
    return RolloutSource(worker, rules, seed=5)


def test_groups_without_signal_are_replaced_until_the_batch_is_full() -> None:
    plain, rollouts = refilled(0), refilled(20)
    first, batch = plain.next(tiny_params(), 0), rollouts.next(tiny_params(), 0)
    stats = rollouts.stats()
    assert first.advantages.reshape(3, 4).any(1).sum() < 3, "the test needs groups that teach nothing"
    assert batch.advantages.reshape(3, 4).any(1).all()
    assert {x.shape[0] for x in jax.tree.leaves(batch.replace(shared=None))} == {12}
    assert batch.shared.tokens.shape[0] == 3
    assert stats["refill/full"] == 1
    assert 1 < stats["refill/rounds"] < 20
    sampled = 3 * stats["refill/rounds"]
    assert stats["refill/keep_rate"] == pytest.approx((3 + stats["refill/surplus"]) / sampled)
    assert stats["refill/tokens"] == pytest.approx(stats["completions/mean_length"] * sampled * 4)
    assert stats["frac_reward_zero_std"] == pytest.approx(1 - stats["refill/keep_rate"])
    rows = rollouts.samples()
    assert len(rows) == 12
    assert {row["prompt"] for row in rows} == {"1+="}
    assert "refill/rounds" not in plain.stats()


def test_refilling_stops_at_its_bound_and_keeps_the_shape() -> None:
    rollouts = refilled(1)
    batch = rollouts.next(tiny_params(), 0)
    assert batch.rows == 12
    assert rollouts.stats()["refill/rounds"] == 2
    if not rollouts.stats()["refill/full"]:
        useful = batch.advantages.reshape(3, 4).any(1)
        assert list(useful) == sorted(useful, reverse=True), "what teaches comes first"


def test_a_refilled_run_resumes_exactly() -> None:
    whole, stopped, resumed = refilled(3), refilled(3), refilled(3)
    for step in range(2):
        whole.next(tiny_params(), step)
        stopped.next(tiny_params(), step)
    resumed.restore(stopped.state())
    assert trees_equal(resumed.next(tiny_params(), 2), whole.next(tiny_params(), 2))
    assert resumed.stats()["refill/rounds"] == whole.stats()["refill/rounds"]


def test_a_rollout_is_dealt_into_updates_and_again_in_every_epoch() -> None:
    rules = replace(RULES, minibatches=3, epochs=2)
    rollouts, plain = source(rules), source()
    whole = plain.next(tiny_params(), 0)
    moved = jax.tree.map(lambda x: 1.1 * x, tiny_params())
    parts = [rollouts.next(tiny_params() if step == 0 else moved, step) for step in range(6)]
    assert all(part.rows == 4 for part in parts)

    def rows(batches: list[RolloutRows]) -> list[bytes]:
        found = []
        for batch in batches:
            # With their prompts in front, so that a row is known by what it continues.
            arrays = [np.asarray(x) for x in jax.tree.leaves((joined_rows(batch), batch.replace(shared=None)))]
            found += [b"".join(x[n].tobytes() for x in arrays) for n in range(batch.rows)]
        return found

    everything = rows([whole])
    for epoch in (parts[:3], parts[3:]):
        assert sorted(rows(epoch)) == sorted(everything), "each row once in every epoch, as it was sampled"
    assert rows(parts[:3]) != rows(parts[3:]), "in another order"
    assert set(rollouts.stats()) == {"rollout/update"}
    assert len(rollouts.samples()) == 12
    resumed = source(rules)
    with pytest.raises(ValueError, match="update 2 of a rollout that is not here"):
        resumed.next(moved, 1)
    again = source(rules)
    first = [again.next(tiny_params(), 0), again.next(tiny_params(), 1)]
    resumed.restore(json.loads(json.dumps(again.state())))
    resumed.restore_arrays(again.arrays())
    assert trees_equal([*first, *(resumed.next(moved, step) for step in range(2, 6))], parts)
    assert resumed.samples() == rollouts.samples()
    assert "reward" in (resumed.next(moved, 6) and resumed.stats()), "the seventh update has a rollout of its own"


def test_overlapped_rollouts_are_those_of_the_parameters_before() -> None:
    """What is learnt from at step n was sampled from the model of step n - 1, with the noise of step n."""
    rules = replace(RULES, overlap=True)
    models = [jax.tree.map(lambda x, scale=scale: scale * x, tiny_params()) for scale in (1.0, 1.02, 1.04, 1.06)]
    ahead, plain = source(rules), source()
    found = [ahead.next(params, step) for step, params in enumerate(models)]
    want = [plain.next(models[max(step - 1, 0)], step) for step in range(4)]
    assert trees_equal(found, want)
    assert ahead.stats()["rollout/staleness"] == 1
    stopped, resumed = source(rules), source(rules)
    first = [stopped.next(params, step) for step, params in enumerate(models[:2])]
    resumed.restore(json.loads(json.dumps(stopped.state())))
    resumed.restore_arrays(stopped.arrays())
    assert trees_equal([*first, *(resumed.next(models[step], step) for step in (2, 3))], want)


def test_nothing_is_sampled_ahead_of_the_end() -> None:
    rules = replace(RULES, overlap=True, minibatches=2)
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=3, seed=0))
    worker = RolloutWorker(tiny(), asked, Digits(), TOKENIZER, rules, RolloutOptions(seed=5, say=lambda _: None))
    rollouts = RolloutSource(worker, rules, seed=5, steps=4)
    stale = []
    for step in range(4):
        rollouts.next(tiny_params(), step)
        stale.append(rollouts.stats().get("rollout/staleness"))
    assert stale == [0, None, 2, None]
    assert set(rollouts.arrays()) == {"rollout"}


def test_a_verifier_that_hangs_costs_the_answer_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    task = importlib.import_module("stuck_task").Stuck()
    asked = prompt_source(task, TOKENIZER, PromptRows(split="train", batch_size=2, seed=0))
    with judge_of(task, workers=2, seconds=1.0) as judge:
        worker = RolloutWorker(
            tiny(), asked, task, TOKENIZER, RULES, RolloutOptions(seed=5, judge=judge, say=lambda _: None)
        )
        rollouts = RolloutSource(worker, RULES, seed=5)
        for step in range(2):
            rollouts.next(tiny_params(), step)
            rows = rollouts.samples()
            stuck = [row for row in rows if row["completion"][:1].isdigit()]
            assert rollouts.stats()["verify/timeouts"] == len(stuck)
            for row in rows:
                late = row in stuck
                assert (row["reason"], row["reward"]) == (
                    ("timeout", 0) if late else ("counted", len(row["completion"]) % 2 == 0)
                )
        assert judge.timeouts > 0, "the test needs answers that hang"
