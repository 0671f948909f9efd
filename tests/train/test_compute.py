"""What a run has cost: counted from its start, the same however often it was killed, whatever is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import infer.work
import rl.rollout
from model.compute import equivalent_parameters, flops, parameters
from model.reports import Work
from store.checkpoint import Checkpoints
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import tiny
from train.compute import CUMULATIVE, Meter
from train.loop import Trainer, by_hand, run

RECURRENT = {"model.n_layers": 1, "model.depth": "recurrent", "model.recurrent.mean": 2}
RECURRENT |= {"model.recurrent.prelude": 0, "model.recurrent.coda": 0}
# Depths drawn micro-batch by micro-batch, and rollouts that are sampled ahead, used twice and carried on.
KINDS: dict[str, dict[str, Any]] = {
    "sft": {**RECURRENT, "model.recurrent.draw": "poisson", "micro_batch": 4, "log.every": 2},
    "grpo": {"rl.epochs": 2, "rl.overlap": True, "rl.carry": 1, "rl.slots": 4},
}


def config(kind: str, steps: int = 4, **changes: Any) -> ConfigDict:
    found = get_config(kind)
    more = {"steps": steps, "eval.every": 3, "eval.examples": 2, "checkpoint.every": 2}
    found.update_from_flattened_dict(more | KINDS[kind] | changes)
    return found


def spent(folder: Path) -> list[tuple[int, float]]:
    """(step, FLOPs) of every line."""
    return [(record["step"], record["compute/flops"]) for record in read_metrics(folder)]


def test_seconds_that_overlap_count_once() -> None:
    """A text source draws the next batch while an update is under way; between the two runs nobody works."""
    meter = Meter(tiny(), devices=2)
    meter.add({"compute/tokens": 10.0}, 0, started=1.0, ended=3.0)
    meter.add({"compute/tokens": 10.0}, 7, started=2.0, ended=4.0)
    other = Meter(tiny(), devices=2)
    other.restore(json.loads(json.dumps(meter.state())))
    other.add({"compute/tokens": 0.0}, 0, started=100.0, ended=101.0)
    assert other.metrics()["time/compute"] == 2 * (3.0 + 1.0)
    assert other.metrics()["compute/flops"] == 2 * flops(tiny(), Work(10), trains=True) + 7
    with pytest.raises(ValueError, match="end it with add_auxiliary_losses"):
        other.add({"loss": 1.0}, 0, 0.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_counts_on_where_it_was_killed(one_device: Any, kind: str, tmp_path: Path) -> None:
    """Killed by an error after its third step, and gone on with from the checkpoint after its second."""
    run(config(kind), tmp_path / "whole")
    real, calls = Trainer._flush, list[int]()

    def broken(self: Trainer, bar: Any = None) -> dict[str, float]:
        calls.append(self.pending.step if self.pending else -1)
        if calls[-1] == 2:
            raise OSError("power cut")
        return real(self, bar)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Trainer, "_flush", broken)
        run(config(kind), tmp_path / "killed")
    run(config(kind), tmp_path / "killed")
    assert spent(tmp_path / "killed") == spent(tmp_path / "whole")
    steps = [step for step, _ in spent(tmp_path / "whole")]
    assert steps == ([2, 3, 4, 4] if kind == "sft" else [1, 2, 3, 3, 4, 4]), "evaluations tell it, logged or not"
    rising = [amount for _, amount in dict(spent(tmp_path / "whole")).items()]
    assert 0 < rising[0] < rising[-1] and rising == sorted(rising)


def test_updates_and_samples_add_up(one_device: Any, tmp_path: Path) -> None:
    """6N for every token of an update, 2N for every one sampled: prompts once, and what their samples said; also where
    a rollout serves two updates.
    """
    rollouts: list[Work] = []

    def counted(*arguments: Any, **options: Any) -> Work:
        rollouts.append(infer.work.sampling_work(*arguments, **options))
        return rollouts[-1]

    settings = config("grpo", **{"rl.overlap": False, "rl.carry": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.rollout, "sampling_work", counted)
        result = run(settings, tmp_path)
    records = [record for record in read_metrics(tmp_path) if "loss" in record]
    fresh = [record for record in records if "num_samples" in record]
    assert len(records) == 4 and len(fresh) == len(rollouts) == 2
    for number, (record, work) in enumerate(zip(fresh, rollouts, strict=True)):
        said = round(record["completions/mean_length"] * record["num_samples"])
        prompts = (record["num_tokens"] - said) / 4
        assert work.tokens == said + prompts
        # A row's last token is not read, for nothing is predicted from it.
        for update in records[2 * number : 2 * number + 2]:
            assert update["compute/tokens"] == said - record["num_samples"] + prompts
    size = sum(parameters(tiny_model(tmp_path)))
    vectors = 3 * 32  # of norms, which take part in no product
    weights = size - vectors
    learnt, sampled = sum(record["compute/tokens"] for record in records), sum(work.tokens for work in rollouts)
    assert records[-1]["compute/flops"] == weights * (6 * learnt + 2 * sampled)
    assert result["parameters"] == size == result["equivalent_parameters"]


def tiny_model(folder: Path) -> Any:
    from infer.load import load_run

    return load_run(folder).model.config


def test_a_looped_run_tells_what_it_is_worth(one_device: Any, tmp_path: Path) -> None:
    result = run(config("sft", steps=1), tmp_path)
    model = tiny_model(tmp_path)
    assert result["parameters"] == sum(parameters(model))
    assert result["equivalent_parameters"] == round(equivalent_parameters(model)) > result["parameters"]


def test_a_checkpoint_of_before_is_gone_on_with_in_words(
    one_device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, settings = Checkpoints.save, config("sft", steps=2, **{"model.depth": "stack"})

    def older(self: Checkpoints, state: Any, source: dict[str, Any], *arguments: Any) -> None:
        real(self, state, {name: value for name, value in source.items() if name != "compute"}, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", older)
        with by_hand(settings, tmp_path) as trainer:
            trainer.step()
    run(settings, tmp_path)
    assert "compute/flops counts from it" in capsys.readouterr().out
    assert all(set(CUMULATIVE) <= set(record) for record in read_metrics(tmp_path))
