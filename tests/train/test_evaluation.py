"""Evaluation without generation: which tokens the held-out losses count, and what a run reports then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.batch import TokenRows
from infer.load import checkpoint_steps
from store.checkpoint import Checkpoints
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.train.test_loop import small_state
from train.cli import report
from train.evaluation import Evaluator
from train.loop import run
from train.objectives.sft import demonstrations
from train.setup import Setup, prepare

LANGUAGES = dict(domains=2, symbols=4, order=1, branching=2, length=12)


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """One of the eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


def config(**data: Any) -> ConfigDict:
    """A tiny run that generates nothing."""
    found = get_config()
    found.eval.update(examples=0, loss_batches=2)
    found.data.update(data)
    return found


def languages(length: int = 14) -> ConfigDict:
    """The same on two random languages."""
    found = config(task="languages", length=length, too_long="truncate")
    found.data.options = ConfigDict(LANGUAGES)
    return found


def evaluated(found: ConfigDict, folder: Path) -> tuple[Setup, Any, dict[str, float]]:
    """(setup, first parameters, metrics) of a config."""
    setup = prepare(found, folder, print)
    params = setup.make_params()
    metrics, samples = Evaluator(setup)(params, 0)
    assert samples == []
    return setup, params, metrics


def mean_loss(setup: Setup, params: Any, prompts_too: bool) -> float:
    """The mean cross entropy from whole logits; without `prompts_too`, of answers alone."""
    source = demonstrations(setup, "test", seed=0, loss_on="all" if prompts_too else "answer")
    losses = []
    for _ in range(2):
        batch = jax.tree.map(np.asarray, source.next(None, 0))
        out = setup.model.apply(params, batch.tokens, positions=batch.positions, segments=batch.segments)
        logps = np.asarray(jax.nn.log_softmax(setup.model.logits(params, out.hidden)))
        for row, column in np.argwhere(batch.mask > 0):
            if column:
                losses.append(-logps[row, column - 1, batch.tokens[row, column]])
    return float(np.mean(losses))


def test_answers_alone_are_counted_unless_prompts_are_learnt(tmp_path: Path) -> None:
    setup, params, metrics = evaluated(config(), tmp_path)
    assert metrics == {"answer_loss": pytest.approx(mean_loss(setup, params, False), rel=1e-5)}
    setup, params, metrics = evaluated(config(loss_on="all"), tmp_path)
    assert set(metrics) == {"answer_loss", "loss"}
    assert metrics["answer_loss"] == pytest.approx(mean_loss(setup, params, False), rel=1e-5)
    assert metrics["loss"] == pytest.approx(mean_loss(setup, params, True), rel=1e-5)
    assert abs(metrics["loss"] - metrics["answer_loss"]) > 1e-3


def test_losses_by_position_are_parts_of_the_answer_loss(tmp_path: Path) -> None:
    """Ranges start at 0 and at each of `eval.positions`; one that holds no answer token is left out."""
    found = config(pack=True)
    found.eval.positions = (5, 6, 20)
    setup, params, metrics = evaluated(found, tmp_path)
    source = demonstrations(setup, "test", seed=0)
    losses: dict[int, list[float]] = {0: [], 5: [], 6: []}
    for _ in range(2):
        batch = jax.tree.map(np.asarray, source.next(None, 0))
        out = setup.model.apply(params, batch.tokens, positions=batch.positions, segments=batch.segments)
        logps = np.asarray(jax.nn.log_softmax(setup.model.logits(params, out.hidden)))
        for row, column in np.argwhere(batch.mask > 0):
            position = batch.positions[row, column]
            assert position > 0
            start = max(edge for edge in losses if edge <= position)
            losses[start].append(-logps[row, column - 1, batch.tokens[row, column]])
    assert all(losses.values())
    want = {f"answer_loss_from_{start}": np.mean(found) for start, found in losses.items()}
    want["answer_loss"] = np.mean(np.concatenate(list(losses.values())))
    assert metrics == {name: pytest.approx(float(value), rel=1e-5) for name, value in want.items()}


@pytest.mark.parametrize("positions", [(6, 5), (5, 5), (0, 5)])
def test_positions_that_do_not_rise_are_refused(positions: tuple[int, ...], tmp_path: Path) -> None:
    found = config()
    found.eval.positions = positions
    with pytest.raises(ValueError, match=r"eval.positions must be whole, positive and rising"):
        evaluated(found, tmp_path)


@pytest.mark.parametrize("length", [9, 20])
def test_the_excess_is_what_exceeds_the_entropy(length: int, tmp_path: Path) -> None:
    setup, params, metrics = evaluated(languages(length), tmp_path)
    assert metrics["answer_loss"] == pytest.approx(mean_loss(setup, params, True), rel=1e-5)
    floor = setup.task.floor(length)  # type: ignore[attr-defined]
    assert floor > 0.3
    assert metrics["excess_loss"] == pytest.approx(metrics["answer_loss"] - floor)


def test_the_true_model_has_no_excess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows the languages reaches the floor, but for the noise of the rows drawn."""
    found = languages(20)
    found.eval.loss_batches = 100
    setup = prepare(found, tmp_path, print)
    task, tokenizer = setup.task, setup.tokenizer

    def true_logps(model: Any, params: Any, batch: TokenRows, **_: Any) -> tuple[jax.Array, None, None]:
        return jax.pure_callback(known, jax.ShapeDtypeStruct((8, 19), jnp.float32), batch.tokens), None, None

    def known(tokens: Any) -> np.ndarray:
        logps = np.zeros((8, 19), np.float32)
        for row, ids in enumerate(np.asarray(tokens).tolist()):
            name, *text = tokenizer.decode(ids)
            before = 0
            for place, letter in enumerate(text):
                table = task.successors(ord(name) - ord("A"))[before]  # type: ignore[attr-defined]
                before = task.alphabet.index(letter)  # type: ignore[union-attr]
                logps[row, place] = np.log((2 / 3, 1 / 3)[table.index(before)])
        return logps

    monkeypatch.setattr("train.evaluation.batch_logps", true_logps)
    metrics, _ = Evaluator(setup)(None, 0)
    assert metrics["excess_loss"] == pytest.approx(0, abs=0.01)


def test_a_run_without_answers_reports_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = languages()
    found.eval.update(every=2, at_start=True)
    found.checkpoint.update(every=2, keep_last=1)
    result = run(found, tmp_path / "run")
    final = result["evaluation"]
    assert set(final) == {"answer_loss", "excess_loss"}
    [stage] = result["stages"]
    figures = {"answer_loss": final["answer_loss"], "steps": result["steps"], "seconds": result["seconds"]}
    assert stage == {"name": "sft", **figures}
    losses = [r["eval/answer_loss"] for r in read_metrics(tmp_path / "run") if "eval/answer_loss" in r]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert (tmp_path / "run" / "samples.jsonl").read_text() == ""
    capsys.readouterr()
    report(json.loads((tmp_path / "run" / "result.json").read_text()), tmp_path / "run")
    output = capsys.readouterr().out
    assert f"{final['answer_loss']:.4f}" in output
    assert "accuracy" not in output.splitlines()[1] and "Talk to it" not in output


def test_without_accuracy_the_best_checkpoint_has_the_lowest_loss(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    for step, loss in enumerate([0.9, 0.2, 0.5, None, 0.3], 1):
        checkpoints.save(small_state(step), {"at": step}, None if loss is None else {"answer_loss": loss})
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 5]


@pytest.mark.parametrize(
    ("examples", "batches", "words"),
    [(0, 0, "eval.examples must be at least 1.*found 0 and 0"), (-1, 2, "eval.examples must be at least 0, found -1")],
)
def test_nothing_to_evaluate_is_refused(examples: int, batches: int, words: str, tmp_path: Path) -> None:
    found = config()
    found.eval.update(examples=examples, loss_batches=batches)
    with pytest.raises(ValueError, match=words):
        run(found, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_too_long_for_an_answer_are_left_out_said_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = get_config(), list[str]()
    rows = [{"a": a, "b": 2, "think": False} for a in (1, 12, 3, 4, 567)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found.eval.update(split=str(tmp_path / "few.jsonl"), examples=8, max_new_tokens=60)
    monkeypatch.setattr(Evaluator, "_answers", lambda self, *_: ({"asked": float(len(self._examples))}, []))
    with pytest.raises(ValueError, match="a prompt of 6 tokens and 60 new ones"):
        Evaluator(prepare(found, tmp_path, said.append))
    found.data.too_long = "drop"
    metrics, _ = Evaluator(prepare(found, tmp_path, said.append))({}, 0)
    assert metrics == {"asked": 3.0, "dropped": 2.0}
    assert len(said) == 1
    assert "2 of the first 5 examples" in said[0]
    assert "have prompts of more than 4 tokens and are left out" in said[0]


def test_held_out_rows_that_do_not_fit_are_found_before_the_first_step(tmp_path: Path) -> None:
    setup = prepare(config(length=4), tmp_path, print)
    with pytest.raises(ValueError, match=r"the rows hold 4; it begins .* raise length"):
        Evaluator(setup)
