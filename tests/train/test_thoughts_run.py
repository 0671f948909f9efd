"""Whole runs that learn to think in states: stages, restarts, evaluation, resuming, and GRPO after them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from data.sources.thoughts import markers_of
from data.thoughts import Ending
from data.tokenizers.build import load_tokenizer
from infer.__main__ import main as infer_main
from infer.load import checkpoint_steps, load_run
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import trees_equal
from train.algorithms import build_algorithm
from train.evaluation import Evaluator
from train.loop import Trainer, run
from train.setup import prepare
from train.state import forget, new_state

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """One of the eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


def config(**changes: Any) -> ConfigDict:
    """Six steps of 2-digit products in three stages of two steps, with 0, 2 and 2 thoughts."""
    found = get_config()
    found.update(dict(algorithm="coconut", steps=STEPS))
    found.model.n_layers = 1
    found.data.task = "multiplication"
    found.data.options = ConfigDict(dict(digits=2, style="compact", train_size=64, test_size=8))
    found.thoughts.update(thoughts_per_step=2, max_stage=1, stage_steps=2)
    found.eval.update(max_new_tokens=8, loss_batches=1)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def saved(folder: Path, item: str) -> Any:
    """One item of the last checkpoint."""
    at = folder / "checkpoints" / str(checkpoint_steps(folder)[-1]) / item
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(at.absolute())


def repeatable(folder: Path) -> list[dict[str, Any]]:
    """The metrics without clocks and what was read ahead."""
    return [{k: v for k, v in r.items() if "time" not in k} for r in read_metrics(folder)]


@pytest.fixture(scope="module")
def done(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A complete run, evaluated in every stage."""
    folder = tmp_path_factory.mktemp("coconut") / "run"
    return folder, run(config(eval__every=2, eval__at_start=True, checkpoint__every=2), folder)


@pytest.mark.more
def test_stages_follow_one_another_in_one_run(done: tuple[Path, dict[str, Any]]) -> None:
    folder, result = done
    assert {"accuracy", "mean_tokens", "answer_loss"} <= set(result["evaluation"])
    records = [record for record in read_metrics(folder) if "loss" in record]
    assert [(r["stage"], r["thoughts"]) for r in records] == [(0, 0), (0, 0), (1, 2), (1, 2), (2, 2), (2, 2)]
    assert all(np.isfinite(r["loss"]) for r in records)
    evaluated = [r for r in read_metrics(folder) if "eval/accuracy" in r]
    assert [r["step"] for r in evaluated] == [0, 2, 4, 6]
    ids = markers_of(load_tokenizer(folder / "tokenizer"))
    ending = load_run(folder).ending
    assert ending == Ending((ids.start, ids.latent, ids.latent, ids.end), 2)


@pytest.mark.more
def test_a_run_resumed_at_a_new_stage_ends_the_same(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    step = Trainer._one

    def cut(self: Trainer, state: Any, n: int, *rest: Any, **named: Any) -> Any:
        if n == 3:
            self.checkpoints.close()
            raise RuntimeError("power cut")
        return step(self, state, n, *rest, **named)

    again = config(eval__every=2, eval__at_start=True, checkpoint__every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_one", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(again, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [2], "the second stage begins with the step after"
    run(again, tmp_path / "run")
    for item in ("params", "rest"):
        assert trees_equal(saved(tmp_path / "run", item), saved(done[0], item)), item
    assert repeatable(tmp_path / "run") == repeatable(done[0])


def test_the_optimizer_forgets_and_its_schedule_goes_on() -> None:
    rate = optax.linear_schedule(1.0, 0.0, 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    state = new_state({"w": jax.numpy.ones(3)}, optimizer, seed=0)
    _, moved = optimizer.update({"w": jax.numpy.ones(3)}, state.optimizer, state.params)
    fresh = forget(state.replace(optimizer=moved), optimizer).optimizer  # type: ignore[attr-defined]
    adam, *_, schedule = fresh[1]
    assert (int(adam.count), int(schedule.count)) == (0, 1)
    assert not adam.mu["w"].any() and moved[1][0].mu["w"].all()


@pytest.mark.parametrize(
    ("reset", "restarts"), [("never", []), ("stage", [2, 4]), ("epoch", [8, 16])], ids=["never", "stage", "epoch"]
)
def test_when_the_optimizer_forgets(tmp_path: Path, reset: str, restarts: list[int]) -> None:
    algorithm = build_algorithm(prepare(config(thoughts__reset=reset), tmp_path, print))
    assert [n for n in range(20) if algorithm.restarts(n)] == restarts


@pytest.mark.parametrize(
    ("method", "thoughts", "tokens"),
    [("coconut", 2, 4), ("pause", 0, 4), ("pause_as_thought", 0, 4), ("no_cot", 0, 0), ("cot", 0, 0), ("icot", 0, 0)],
)
def test_what_a_method_is_asked(tmp_path: Path, method: str, thoughts: int, tokens: int) -> None:
    algorithm = build_algorithm(prepare(config(thoughts__method=method), tmp_path, print))
    ending = algorithm.evaluation.ending(STEPS, None)
    assert (ending.thoughts, len(ending.tokens)) == (thoughts, tokens)
    batch = algorithm.source.next({}, STEPS)
    assert (batch.latent is not None) == (method == "coconut")


@pytest.mark.more
def test_another_number_of_thoughts_can_be_forced(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """By `eval.thoughts`, and only where a method has places for them."""
    found = config(eval__thoughts=5)
    setup = prepare(found, tmp_path, print)
    evaluation = build_algorithm(setup).evaluation
    assert evaluation.ending(0, 5).thoughts == 5 and len(evaluation.ending(0, 5).tokens) == 7
    metrics, records = Evaluator(setup, evaluation)(setup.make_params(), 0)
    assert 0 <= metrics["accuracy"] <= 1 and len(records) == 4
    with pytest.raises(ValueError, match=r"'no_cot' has no place for 5 thoughts"):
        run(config(eval__thoughts=5, thoughts__method="no_cot"), tmp_path / "run")
    with pytest.raises(ValueError, match="nobody taught this one to think"):
        run(config(eval__thoughts=5, algorithm="sft"), tmp_path / "run")


@pytest.mark.more
def test_a_run_without_markers(tmp_path: Path) -> None:
    """Questions end in their thoughts, here and at the command line; another number of them can be forced."""
    metrics = run(config(eval__every=2, thoughts__markers=False), tmp_path / "run")["evaluation"]
    kept = load_run(tmp_path / "run")
    assert (len(kept.ending.tokens), kept.ending.thoughts, kept.ending.after) == (2, 2, 0)
    for thoughts in ("2", "0", "3"):
        said = tmp_path / f"{thoughts}.jsonl"
        flags = [f"--run={tmp_path / 'run'}", "--task=own", f"--thoughts={thoughts}", f"--output={said}"]
        assert infer_main([*flags, "--examples=4"]) == 0
        told = [json.loads(line)["completion"] for line in said.read_text().splitlines()]
        own = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
        same = told == [record["completion"] for record in own if record["step"] == STEPS]
        assert same or thoughts != "2"
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.more
def test_the_command_line_thinks(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = [f"--run={done[0]}", "--task=own", "--examples=4"]
    assert infer_main([*flags, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == done[1]["evaluation"]["accuracy"]
    told = [json.loads(line)["completion"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (done[0] / "samples.jsonl").read_text().splitlines()]
    assert told == [record["completion"] for record in kept if record["step"] == STEPS]
    assert infer_main([*flags, "--thoughts=3"]) == 0
    assert infer_main([f"--run={done[0]}", "--prompt=12*34\n", "--max_new_tokens=3"]) == 0
    assert infer_main([*flags, "--thoughts=-1"]) == 2


@pytest.mark.more
def test_grpo_goes_on_with_the_thoughts(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = config(algorithm="grpo", steps=2, init_from=str(done[0]), eval__loss_batches=0)
    found.rl.update(prompts=2, samples=4, max_new_tokens=6, beta=0.1)
    found.model = get_config().model.copy_and_resolve_references()
    found.model.update(d_model=0, n_layers=0, n_heads=0, d_ff=0, max_length=2048, init_std=0.02)
    result = run(found, tmp_path / "grpo")
    first = read_metrics(tmp_path / "grpo")[0]
    assert first["ratio_deviation/max"] < 1e-5 and first["kl"] == pytest.approx(0, abs=1e-6)
    assert result["status"] == "complete"
    assert load_run(tmp_path / "grpo").ending == load_run(done[0]).ending


@pytest.mark.more
def test_codi_runs(tmp_path: Path) -> None:
    codi = {"thoughts__objective": "codi", "thoughts__method": "no_curriculum", "steps": 2, "micro_batch": 4}
    result = run(config(**codi), tmp_path / "run")
    [first, *_] = read_metrics(tmp_path / "run")
    assert {"codi/teacher_loss", "codi/distance"} <= set(first)
    assert "accuracy" in result["evaluation"]


@pytest.mark.more
def test_tables_of_experts_are_trained_densely(tmp_path: Path) -> None:
    """For a thought takes another pass, and row training allows one."""
    peer = {"model__ffn": "peer", "model__peer__n_experts": 16, "model__peer__top_k": 4}
    assert prepare(config(**peer), tmp_path, print).rows is None
    assert prepare(config(algorithm="sft", **peer), tmp_path, print).rows
    run(config(**peer, steps=3, eval__examples=0), tmp_path / "run")
    assert all(record["skipped"] == 0 for record in read_metrics(tmp_path / "run") if "loss" in record)


@pytest.mark.more
def test_a_recurrent_model_thinks_in_both_ways(tmp_path: Path) -> None:
    """Depths are drawn in training, and chosen at test, for passes over thoughts like for any other."""
    found = config(steps=3, eval__depths=(1, 3), model__depth="recurrent", model__n_layers=3)
    found.model.recurrent.update(mean=2, draw="poisson")
    measured = run(found, tmp_path / "run")["evaluation"]
    assert {"accuracy", "accuracy_at_depth_3", "answer_loss_at_depth_1"} <= set(measured)
    assert measured["answer_loss_at_depth_1"] != measured["answer_loss_at_depth_3"]
    last = [record for record in read_metrics(tmp_path / "run") if "loss" in record][-1]
    assert last["thoughts"] == 2 and last["skipped"] == 0


@pytest.mark.more
def test_a_mesh_trains_the_same_model(tmp_path: Path) -> None:
    """Thoughts are rows like the rest of a batch, and an optimizer that forgets keeps its layout."""
    losses = []
    for name, devices, mesh in (("alone", 1, {}), ("mesh", 8, {"mesh__data": 2, "mesh__fsdp": 4})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "device_count", lambda *_, devices=devices: devices)
            run(config(steps=3, **mesh, eval__examples=0), tmp_path / name)
        losses.append([record["loss"] for record in read_metrics(tmp_path / name) if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"thoughts__reset": "stages"}, r"thoughts\.reset"),
        ({"thoughts__objective": "code"}, r"thoughts\.objective"),
        ({"thoughts__objective": "codi"}, 'thoughts.method to "no_curriculum"'),
        (
            {"thoughts__objective": "codi", "thoughts__method": "no_curriculum", "thoughts__markers": False},
            "compares states at markers",
        ),
        ({"data__pack": True}, r"data\.pack=True"),
        ({"data__loss_on": "all"}, r"data\.loss_on='all'"),
        ({"thoughts__first": 3}, r"thoughts\.first=3.*questions need first=7"),
        ({"thoughts__length": 12}, "rows hold 12"),
        ({"thoughts__max_stage": 3}, "the longest chain has 2 steps"),
        ({"data__task": "addition"}, "has no steps to take away"),
        ({"model__mtp__depth": 1}, r"model\.mtp\.depth=1"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = config(**changes)
    if "data__task" in changes:
        found.data.options = ConfigDict(dict(digits=1))
    with pytest.raises(ValueError, match=words):
        run(found, tmp_path / "run")
    assert not (tmp_path / "run").exists()
