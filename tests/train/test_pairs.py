"""Learning from pairs: what a batch holds, one reading of a prompt, the reference, both algorithms as runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from infer.load import load_run
from settings.preference import PreferenceConfig
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import assert_trees_close, trees_equal
from train.accumulate import WHOLE, accumulate
from train.algorithms import build_algorithm
from train.completions import completion_logps
from train.loop import by_hand, run
from train.objectives.preference import preference_objective
from train.objectives.reward import pair_metrics
from train.setup import prepare

PAIRS = [(a, b) for a in range(10) for b in range(3)]


def write(folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    """Thirty pairs: the sum and a wrong one, some of them longer."""
    made = [
        {"a": a, "b": b, "think": False, "chosen": str(a + b), "rejected": str(a + b + 1) * (1 + b), "margin": 0.5 * b}
        for a, b in PAIRS
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (made if rows is None else rows)))
    return str(path)


def config(folder: Path, algorithm: str = "preference", **changes: Any) -> ConfigDict:
    found = get_config("sft")
    found.algorithm, found.steps, found.data.split = algorithm, 4, write(folder)
    found.data.update(length=24, batch_size=8)
    found.eval.update(examples=0, loss_batches=2, split=found.data.split)
    if algorithm == "reward":
        found.model.score.size = 1
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def batch_and_params(found: ConfigDict, folder: Path) -> tuple[Any, Any, Any]:
    setup = prepare(found, folder, lambda text: None)
    source = build_algorithm(setup).source
    params = setup.make_params()
    return setup, source.next(params, 0), params


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)


def test_a_batch_holds_both_sides_beside_their_prompt(tmp_path: Path) -> None:
    setup, batch, params = batch_and_params(config(tmp_path), tmp_path)
    assert batch.tokens.shape == (16, 12) and batch.shared.tokens.shape == (8, 12)
    for row in range(16):
        ids = batch.tokens[row, : batch.lengths[row]].tolist()
        asked = batch.shared.tokens[row // 2][batch.shared.segments[row // 2] > 0].tolist()
        a, b = setup.tokenizer.decode(asked).rstrip("=").split("+")
        total = int(a) + int(b)
        wanted = str(total) if row % 2 == 0 else str(total + 1) * (1 + int(b))
        assert setup.tokenizer.decode(ids) == wanted and ids[-1] == setup.tokenizer.eos_id
        assert batch.margin[row] == 0.5 * int(b)
    logps = jax.jit(lambda params, batch: completion_logps(setup.model, params, batch)[0])(params, batch)
    np.testing.assert_allclose(batch.ref_logps * batch.mask, logps * batch.mask, atol=1e-5)


@pytest.mark.parametrize("loss", [("sigmoid",), ("kto",), ("orpo",)])
def test_prompts_read_once_are_rows_apart(tmp_path: Path, loss: tuple[str, ...]) -> None:
    """The loss and its gradient, in micro-batches of other widths; and for KTO other pairs' sides after each prompt."""
    orpo = {"preference__reference": False, "preference__nll": 1.0, "preference__nll_prompt": True}
    more = orpo if loss == ("orpo",) else {}
    found = config(tmp_path, preference__loss=loss, data__length=144, **more)
    found.model.max_length = 160
    setup, batch, params = batch_and_params(found, tmp_path)
    objective, plan = preference_objective(setup.model, setup.config.preference), build_algorithm(setup).update.plan
    run_plan = jax.jit(lambda params, batch: accumulate(objective, params, batch, jax.random.key(0), None, plan))
    run_whole = jax.jit(lambda params, batch: accumulate(objective, params, batch, jax.random.key(0), None, WHOLE))
    shared, apart = run_plan(params, batch), run_whole(params, batch)
    assert (plan.read is None) == (loss == ("orpo",)) and plan.widths
    np.testing.assert_allclose(shared.total / shared.count, apart.total / apart.count, rtol=1e-5)
    assert_trees_close(shared.gradients, apart.gradients, 1e-4)
    if loss == ("kto",):
        assert batch.rows == 32 and shared.count == 16
        rows = batch.tokens.reshape(8, 4, -1)
        assert not np.array_equal(rows[:, 0], rows[:, 2]), "other pairs' sides"


@pytest.mark.more
def test_losses_of_what_the_policy_finds_likely(tmp_path: Path) -> None:
    found = config(tmp_path, preference__weighted=True)
    setup, batch, params = batch_and_params(found, tmp_path)
    objective = jax.jit(preference_objective(setup.model, setup.config.preference))
    plain = jax.jit(preference_objective(setup.model, PreferenceConfig()))
    weighted, whole = (f(params, batch, jax.random.key(0))[0] for f in (objective, plain))
    assert 0 < float(weighted) < float(whole), "weights are below 1"


def test_a_run_learns_its_pairs_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    found = config(tmp_path, steps=24, optimizer__lr=1e-2)
    run(found, tmp_path / "whole")
    metrics = read_metrics(tmp_path / "whole")
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-5), "the policy begins as its reference"
    assert metrics[-1]["eval/rewards/accuracies"] > 0.8
    assert metrics[-1]["eval/loss"] < 0.6
    with by_hand(found, tmp_path / "cut") as trainer:
        for _ in range(5):
            trainer.step()
    run(found, tmp_path / "cut")
    assert trees_equal(load_run(tmp_path / "whole").params, load_run(tmp_path / "cut").params)


def test_a_reward_model_learns_and_a_mesh_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(tmp_path, "reward", steps=15, optimizer__lr=1e-2, reward__center=0.01)
    run(found, tmp_path / "alone")
    metrics = read_metrics(tmp_path / "alone")
    assert metrics[-1]["eval/accuracy"] > 0.8 and metrics[-1]["eval/calibration_error"] < 0.5
    monkeypatch.setattr(jax, "device_count", jax.local_device_count)
    found.mesh.update(data=2, fsdp=4)
    run(found, tmp_path / "mesh")
    assert_trees_close(load_run(tmp_path / "alone").params, load_run(tmp_path / "mesh").params, 2e-3)


def test_a_reward_model_begins_from_a_language_model(tmp_path: Path) -> None:
    run(config(tmp_path, "sft", data__split="train", eval__split="test"), tmp_path / "lm")
    found = config(tmp_path, "reward", init_from=str(tmp_path / "lm"), steps=1, optimizer__lr=0.0)
    run(found, tmp_path / "rm")
    lm, rm = (load_run(tmp_path / name).params for name in ("lm", "rm"))
    assert "score" in rm and "head" not in rm
    assert trees_equal({k: v for k, v in rm.items() if k != "score"}, {k: v for k, v in lm.items() if k != "head"})


def test_pair_metrics() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [30.0, -30.0]])
    found = pair_metrics(scores)
    assert found["accuracy"] == 0.5, "a tie is wrong"
    sure = 1 / (1 + np.exp(-np.array([2.0, 0.0, 1.0, 60.0])))
    right = np.array([1, 0, 0, 1])
    assert found["calibration_error"] == pytest.approx(np.abs(sure - right).mean()), "each in a bin of its own"
    assert found["loss"] == pytest.approx(np.logaddexp(0, -(scores[:, 0] - scores[:, 1])).mean())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "1", "rejected": "1"}, "line 1,: chosen and rejected are the same text"),
        ({"chosen": "1"}, "no text under rejected"),
        ({"chosen": "1", "rejected": 2}, "no text under rejected"),
        ({"chosen": "1", "rejected": "2", "margin": "much"}, "margin is a number"),
        ({"chosen": "1" * 40, "rejected": "2"}, "41 tokens, and rows hold 12"),
    ],
)
def test_bad_pairs(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    found = config(tmp_path)
    found.data.split = write(tmp_path, [{"a": 1, "b": 2, "think": False, **row}])
    with pytest.raises(ValueError, match=words):
        run(found, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__split": "train"}, "pairs come from a JSON-lines file"),
        ({"data__batch_size": 64}, "holds 30 pairs that fit, and a batch takes 64"),
        ({"micro_batch": 3}, "a pair has 2: choose a multiple"),
        ({"preference__loss": ("aot",), "micro_batch": 4}, "compares the pairs of a batch"),
        ({"preference__prompt_length": 24}, "leaves nothing"),
        ({"algorithm": "reward", "model.score.size": 0}, "set model.score.size=1"),
        ({"algorithm": "reward", "eval.examples": 4}, "answers no questions"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    changes = dict(changes)
    with pytest.raises(ValueError, match=words):
        run(config(tmp_path, changes.pop("algorithm", "preference"), **changes), tmp_path / "run")


def test_too_long_pairs_are_left_out(tmp_path: Path) -> None:
    rows = [{"a": a, "b": 1, "think": False, "chosen": "1" * (1 + 40 * (a == 3)), "rejected": "2"} for a in range(10)]
    found = config(tmp_path, data__too_long="drop", data__batch_size=4)
    found.data.split = write(tmp_path, rows)
    said: list[str] = []
    algorithm = build_algorithm(prepare(found, tmp_path, said.append))
    assert any("1 pairs" in text for text in said) and algorithm.source.stats()["dropped"] == 1
