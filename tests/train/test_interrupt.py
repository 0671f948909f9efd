"""Ctrl-C, more steps for a finished run, runs refused at their start, and the devices that a run asks for."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

import train.loop
import train.setup
from infer.load import checkpoint_steps, load_run, open_origin
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import trees_equal
from train.loop import run
from train.setup import check_accelerator


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Any:
    """Runs of this module use one of the eight devices, and hear Ctrl-C, which a shell's background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield
    signal.signal(signal.SIGINT, before)


def config(kind: str = "sft", **changes: Any) -> ConfigDict:
    """A tiny config with changes to its settings, `a__b` meaning a.b."""
    found = get_config(kind)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(config(), folder)
    return folder


def same_run(folder: Path, wanted: Path) -> bool:
    """Whether two runs ended with the same parameters, and measured the same losses on the way."""
    losses = [[record["loss"] for record in read_metrics(at) if "loss" in record] for at in (folder, wanted)]
    return losses[0] == losses[1] and trees_equal(load_run(folder).params, load_run(wanted).params)


def at_step(number: int, action: Callable[[], None]) -> pytest.MonkeyPatch:
    """Does something as the batch of a step is fetched."""
    patch, one = pytest.MonkeyPatch(), train.loop.Trainer._one

    def acting(self: Any, state: Any, n: int, *rest: Any, **more: Any) -> Any:
        if n == number:
            action()
        return one(self, state, n, *rest, **more)

    patch.setattr(train.loop.Trainer, "_one", acting)
    return patch


@pytest.mark.more_but("15")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_the_run_goes_on(
    number: signal.Signals, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = at_step(2, lambda: signal.raise_signal(number))
    result = run(config(), tmp_path / "run")
    patch.undo()
    assert (result["status"], result["step"], checkpoint_steps(tmp_path / "run")) == ("stopped", 3, [3])
    said = capsys.readouterr().out
    assert "resume with" in said
    assert ("Ctrl-C again stops at once" in said) == (number == signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(config(), tmp_path / "run")["status"] == "complete"
    assert same_run(tmp_path / "run", undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    patch = at_step(2, twice)
    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "run")
    patch.undo()
    assert not checkpoint_steps(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_last_evaluation_is_not_waited_for(undisturbed: Path, tmp_path: Path) -> None:
    def interrupted(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the evaluation went on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop.Evaluator, "__call__", interrupted)
        result = run(config(), tmp_path / "run")
    assert (result["status"], checkpoint_steps(tmp_path / "run")) == ("stopped", [6])
    assert run(config(), tmp_path / "run")["status"] == "complete"
    assert same_run(tmp_path / "run", undisturbed)
    assert [r["eval/accuracy"] for r in read_metrics(tmp_path / "run") if "eval/accuracy" in r] == [
        r["eval/accuracy"] for r in read_metrics(undisturbed) if "eval/accuracy" in r
    ]


def test_more_steps_continue_a_finished_run(undisturbed: Path, tmp_path: Path) -> None:
    assert run(config(steps=4), tmp_path / "run")["steps"] == 4
    result = run(config(steps=6), tmp_path / "run")
    assert (result["status"], result["steps"]) == ("complete", 6)
    assert same_run(tmp_path / "run", undisturbed)
    assert json.loads((tmp_path / "run" / "result-4.json").read_text())["steps"] == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6
    with pytest.raises(ValueError, match="can be continued, not shortened"):
        run(config(steps=5), tmp_path / "run")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_rates_that_depend_on_the_length_cannot_go_on(schedule: str, tmp_path: Path) -> None:
    from store.run_directory import check_free, claim

    claim(tmp_path / "run", config(optimizer__schedule=schedule))
    with pytest.raises(ValueError, match=f"rates of schedule={schedule} depend on the number of steps"):
        check_free(tmp_path / "run", config(optimizer__schedule=schedule, steps=9))


def test_a_stage_that_others_start_from_makes_them_stale(tmp_path: Path) -> None:
    stages = config("stages")
    run(stages, tmp_path / "run")
    stages.stage.grpo.steps = 3
    assert run(stages, tmp_path / "run")["stages"][1]["steps"] == 3, "the last one can go on"
    stages.stage.sft.steps = 5
    with pytest.raises(ValueError, match=r"stale: grpo \(made of sft as it was before\)"):
        run(stages, tmp_path / "run")


def test_what_is_refused_at_the_first_step_claims_nothing(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("no such shape")

    for kind in ("sft", "stages"):
        patch = at_step(0, refuse)
        with pytest.raises(ValueError, match="no such shape"):
            run(config(kind), tmp_path / "run")
        patch.undo()
        assert not (tmp_path / "run").exists()


def test_what_fails_later_keeps_its_folder(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("a bad row")

    patch = at_step(3, fail)
    with pytest.raises(ValueError, match="a bad row"):
        run(config(checkpoint__every=2), tmp_path / "run")
    patch.undo()
    assert (tmp_path / "run" / "config.json").is_file() and checkpoint_steps(tmp_path / "run") == [2]


@pytest.mark.parametrize("name", ["lr[1e-3]", "a*b", "what?"])
def test_names_that_are_patterns_are_refused(name: str, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in its path"):
        run(config(), tmp_path / name / "run")
    with pytest.raises(ValueError, match="in its path"):
        run(config("stages"), tmp_path / name)
    assert not list(tmp_path.iterdir())
    shutil.copytree(undisturbed, tmp_path / name)
    with pytest.raises(ValueError, match="in its path"):
        open_origin(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert trees_equal(load_run(tmp_path / "link").params, load_run(undisturbed).params)


def test_an_accelerator_that_was_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = {"gpus": 0, "tpu": ""}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    check_accelerator(here)
    for asked in ({"gpus": 2, "tpu": ""}, {"gpus": 0, "tpu": "v5e:4x4"}):
        with pytest.raises(ValueError, match="asks for an accelerator"):
            check_accelerator(asked)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda,cpu"):
        check_accelerator(here)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_accelerator({"gpus": 2, "tpu": ""})


def test_a_driver_that_failed_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = {"gpus": 0, "tpu": ""}
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(train.setup, "NVIDIA", tmp_path)
    monkeypatch.setattr(train.setup, "CUDA_PLUGINS", ("no_such_plugin",))
    check_accelerator(here)
    monkeypatch.setattr(train.setup, "CUDA_PLUGINS", ("json",))
    with pytest.raises(ValueError, match="the driver may have failed"):
        check_accelerator(here)
    monkeypatch.setattr(train.setup, "NVIDIA", tmp_path / "none")
    check_accelerator(here)


def test_a_mesh_that_is_one_device_is_none() -> None:
    assert train.setup.mesh_of(config()) is None
    assert train.setup.mesh_of(config(mesh__fsdp=1)) is None
    with pytest.raises(ValueError, match="does not multiply to the 1 devices"):
        train.setup.mesh_of(config(mesh__tensor=3))
