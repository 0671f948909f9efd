"""The loop: what a run leaves behind, what it refuses, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import rl.grpo
import train.algorithms
import train.loop
from data.tokenizers.build import load_tokenizer
from infer.load import checkpoint_steps, load_run
from store.checkpoint import Checkpoints
from store.records import read_metrics
from store.run_directory import LOCK
from tests.tiny_config import get_config
from tests.trunk import assert_trees_close, counted_traces, trees_equal
from train.loop import run
from train.state import TrainState

Run = tuple[Path, dict[str, Any]]


def config(kind: str = "sft", **changes: Any) -> ConfigDict:
    """A tiny config with changes to its settings, `a__b` meaning a.b."""
    found = get_config(kind)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def done(one_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete SFT run of six steps with every optional part switched on."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    changes = {"eval__every": 2, "eval__at_start": True, "eval__loss_batches": 1, "checkpoint__every": 2}
    return folder, run(config(**changes, optimizer__ema=0.9, micro_batch=4), folder)


@pytest.fixture(scope="module")
def done_grpo(one_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete GRPO run of four steps with a KL term."""
    folder = tmp_path_factory.mktemp("run") / "grpo"
    return folder, run(config("grpo", rl__beta=0.1, rl__entropy_coef=0.01, rl__slots=3), folder)


def test_a_run_directory_holds_everything(done: Run) -> None:
    folder, result = done
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    found = json.loads((folder / "config.json").read_text())
    assert found["algorithm"] == "sft"
    assert found["resolved"]["vocab_size"] == load_tokenizer(folder / "tokenizer").vocab_size
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {"step", "kind", "prompt", "completion", "score", "reason"} <= set(samples[0])
    assert [s["step"] for s in samples] == [step for step in (0, 2, 4, 6) for _ in range(4)]
    assert checkpoint_steps(folder)[-1] == 6
    assert not [name for name in snapshot(folder) if Path(name).name.startswith((".", LOCK))]


def test_metrics_have_one_line_per_step(done: Run, done_grpo: Run) -> None:
    for (folder, _), steps in ((done, 6), (done_grpo, 4)):
        records = read_metrics(folder)
        training = [r for r in records if "loss" in r]
        assert [r["step"] for r in training] == list(range(1, steps + 1))
        assert {"loss", "grad_norm", "entropy", "step_time", "skipped"} <= set(training[0])
    evaluated = [r for r in read_metrics(done[0]) if "eval/accuracy" in r]
    assert [r["step"] for r in evaluated] == [0, 2, 4, 6]
    assert {"eval/mean_tokens", "eval/finished", "eval/answer_loss"} <= set(evaluated[0])
    assert evaluated[-1]["eval/answer_loss"] < evaluated[0]["eval/answer_loss"]


def test_grpo_writes_the_metrics_people_look_for(done_grpo: Run) -> None:
    first = read_metrics(done_grpo[0])[0]
    wanted = {"reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio"}
    wanted |= {"completions/eos_rate", "clip_ratio/region_mean", "kl", "entropy", "policy_loss", "ratio_deviation/max"}
    assert wanted <= set(first)
    assert first["ratio_deviation/max"] < 1e-5, "the first update is on policy"
    assert first["kl"] == 0, "the reference is where the policy starts"
    assert read_metrics(done_grpo[0])[-2]["kl"] > 0


@pytest.mark.parametrize(("kind", "late"), [("grpo", 0), ("sft", 1)])
def test_a_rollout_is_not_billed_for_the_update_before(one_device: Any, tmp_path: Path, kind: str, late: int) -> None:
    """Sampling waits for the parameters, so the metrics of that update are written first; a text source waits not."""
    before: list[int] = []
    trainer = train.loop.Trainer

    def spied(self: Any, state: TrainState, n: int, bar: Any, compiling: bool) -> TrainState:
        following = self.algorithm.source.next

        def counted(params: Any, step: int) -> Any:
            before.append(len(read_metrics(tmp_path / kind)))
            return following(params, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.algorithm.source, "next", counted)
            return real(self, state, n, bar, compiling)

    real = trainer._one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_one", spied)
        run(config(kind, steps=4), tmp_path / kind)
    assert before == [max(step - late, 0) for step in range(4)]
    for record in read_metrics(tmp_path / kind)[:4]:
        assert record["step_time"] == pytest.approx(record["time/batch"] + record["time/update"])


def test_the_result_names_what_was_run(done: Run) -> None:
    result = done[1]
    assert (result["status"], result["steps"], result["seed"], result["skipped_updates"]) == ("complete", 6, 0, 0)
    assert {"command", "commit", "versions", "devices", "seconds", "train_seconds", "compilations"} <= set(result)
    assert {"jax", "python", "numpy"} <= set(result["versions"])
    [row] = result["stages"]
    assert row["name"] == "sft"
    assert row["accuracy"] == result["evaluation"]["accuracy"]


def test_a_complete_run_returns_its_result_at_once(done: Run) -> None:
    folder, result = done
    before = snapshot(folder)
    with counted_traces() as seen:
        again = run(config(optimizer__ema=0.9, micro_batch=4, eval__examples=7), folder)
    assert again == json.loads(json.dumps(result))
    assert not seen
    assert snapshot(folder) == before


def test_another_config_is_refused_and_nothing_changes(done: Run) -> None:
    folder, _ = done
    before = snapshot(folder)
    with pytest.raises(ValueError, match=r"optimizer\.lr \(there 0\.003, here 0\.5\).*steps \(there 6, here 9\)"):
        run(config(optimizer__ema=0.9, micro_batch=4, optimizer__lr=0.5, steps=9), folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["sft", "stages"])
def test_a_folder_with_other_things_is_left_alone(one_device: Any, tmp_path: Path, kind: str) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex.*empty or new"):
        run(config(kind), tmp_path)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(ValueError, match="is a file"):
        run(config(kind), tmp_path / "thesis.tex")


def test_a_run_can_be_read_back(done: Run) -> None:
    loaded = load_run(done[0])
    assert loaded.model.config.d_model == 32
    assert loaded.task().prompt({"a": 1, "b": 2}) == "1+2="
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("1+2=")) == "1+2="
    first = load_run(done[0], checkpoint_steps(done[0])[0])
    assert not trees_equal(first.params, loaded.params)
    with pytest.raises(FileNotFoundError, match="no checkpoint 3"):
        load_run(done[0], 3)


def test_updates_without_end_stop_the_run_and_keep_the_batch(one_device: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"3 updates in a row.*bad_batch_\d+\.npz"):
        run(config(steps=50, optimizer__lr=1e38, max_bad_steps=3), folder)
    [path] = folder.glob("bad_batch_*.npz")
    with np.load(path) as batch:
        assert {"tokens", "positions", "segments", "mask"} <= set(batch)
        assert batch["tokens"].shape == (8, 24)
    records = read_metrics(folder)
    assert records[-1]["bad"] == 3
    assert len(records) < 10
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("changes", [{"eval__examples": 0}, {"eval__max_new_tokens": 63}, {"eval__split": "tset"}])
def test_an_evaluation_that_cannot_work_is_refused_before_training(
    one_device: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"examples|context of 64|tset"):
        run(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.more
def test_a_mesh_trains_the_same_model(one_device: Any, tmp_path: Path) -> None:
    run(config(), tmp_path / "alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", jax.local_device_count)
        run(config(mesh__data=2, mesh__fsdp=4), tmp_path / "mesh")
    alone, mesh = (read_metrics(tmp_path / name) for name in ("alone", "mesh"))
    assert [r["loss"] for r in mesh[:6]] == pytest.approx([r["loss"] for r in alone[:6]], rel=1e-4)
    assert_trees_close(load_run(tmp_path / "alone").params, load_run(tmp_path / "mesh").params, 1e-3)


def test_a_pipeline_hands_its_parameters_on(one_device: Any, tmp_path: Path) -> None:
    stages = config("stages")
    stages.stage.grpo.optimizer = ConfigDict(dict(lr=0.0))
    result = run(stages, tmp_path)
    assert [row["name"] for row in result["stages"]] == ["sft", "grpo"]
    assert result["parameters"] == result["equivalent_parameters"] > 0
    assert trees_equal(load_run(tmp_path / "grpo").params, load_run(tmp_path / "sft").params)
    assert (tmp_path / "curves.png").is_file()
    names = {json.loads(line)["kind"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}
    assert names == {"eval", "rollout"}
    assert load_run(tmp_path).config["algorithm"] == "grpo"
    assert run(stages, tmp_path) == json.loads(json.dumps(result))


def test_a_pipeline_resumes_after_its_first_stage(one_device: Any, tmp_path: Path) -> None:
    built: list[Any] = []

    def fail(setup: Any) -> Any:
        """Builds it once, when all stages are looked at."""
        built.append(setup)
        if len(built) > 1:
            raise RuntimeError("power cut")
        return rl.grpo.build(setup)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.algorithms.ALGORITHMS, "grpo", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config("stages"), tmp_path)
    before = snapshot(tmp_path / "sft")
    assert load_run(tmp_path).config["algorithm"] == "sft"
    assert train.algorithms.ALGORITHMS["grpo"] is rl.grpo.build
    assert run(config("stages"), tmp_path)["status"] == "complete"
    assert snapshot(tmp_path / "sft") == before


def small_state(step: int) -> TrainState:
    """A state of a few numbers."""
    number, zero = jax.numpy.float32(step), jax.numpy.int32(0)
    return TrainState(jax.numpy.int32(step), {"w": number + jax.numpy.zeros(3)}, (), None, zero, zero, zero)


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    for step, accuracy in enumerate([0.1, 0.9, 0.3, None, 0.2, None], 1):
        checkpoints.save(small_state(step), {"at": step}, None if accuracy is None else {"accuracy": accuracy})
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 5, 6]


def test_a_resumed_run_still_knows_its_best_checkpoint(tmp_path: Path) -> None:
    for step, accuracy in enumerate([0.9, 0.3, 0.2], 1):
        checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1)
        checkpoints.save(small_state(step), {"at": step}, {"accuracy": accuracy})
        checkpoints.close()
    assert checkpoint_steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_run_that_ends_after_its_last_checkpoint_writes_nothing_twice(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last evaluation is read from the checkpoint: measured again, it would have no rollouts to show."""

    def broken(*_: Any) -> None:
        raise OSError("no room for a picture")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(train.loop, "plot_curves", broken)
        run(config(kind), tmp_path)
    lines = {name: (tmp_path / name).read_text() for name in ("metrics.jsonl", "samples.jsonl")}
    result = run(config(kind), tmp_path)
    assert {name: (tmp_path / name).read_text() for name in lines} == lines
    last = [record for record in read_metrics(tmp_path) if "eval/accuracy" in record][-1]
    found = {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}
    assert found == result["evaluation"]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_state(5), {"at": 5})
    checkpoints.close()
    half = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    (half / "params" / "data").write_text("half")
    checkpoints = Checkpoints(tmp_path)
    state, source, held = checkpoints.restore(small_state(0))
    assert not held
    checkpoints.close()
    assert (int(state.step), source) == (5, {"at": 5})
    assert not half.exists()
