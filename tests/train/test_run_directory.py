"""What a run says to files in its directory that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import train.graph
from infer.load import open_origin
from launch.board import detail
from launch.runs import DONE, Run
from launch.sweep import record
from store.checkpoint import Checkpoints
from store.records import write_json
from store.run_directory import INPUTS, check_free, claim, fixed_settings, read_result
from tests.tiny_config import get_config
from tests.train.test_loop import small_state
from train.graph import digests, graph_of
from train.loop import run
from train.pipeline import states

BROKEN = ["[]", "{}", "", '{"status": "comp', "null", "5", "\0"]
ALMOST = ['{"status": "complete"}', '{"status": 1, "name": "x", "stages": [], "evaluation": {}}']
ALMOST += ['{"status": "complete", "name": "x", "stages": [5], "evaluation": {}}']


@pytest.mark.parametrize("kind", ["sft", "stages"])
@pytest.mark.parametrize("content", [*BROKEN, *ALMOST])
def test_a_result_that_is_none_is_told_before_anything_is_built(tmp_path: Path, kind: str, content: str) -> None:
    claim(tmp_path, get_config(kind))
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json cannot be (read|used): .*; delete it, and the command"):
        run(get_config(kind), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "result.json"]


@pytest.mark.parametrize("content", BROKEN)
def test_settings_that_are_none_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json cannot be (read|used): .*choose another --workdir"):
        run(get_config(), tmp_path)
    with pytest.raises(ValueError, match=r"config\.json cannot be"):
        open_origin(tmp_path)


def test_a_run_without_its_model_is_told(tmp_path: Path) -> None:
    claim(tmp_path, get_config())
    with pytest.raises(ValueError, match=r"config\.json cannot be used: it has no resolved"):
        open_origin(tmp_path)


@pytest.mark.parametrize(("there", "here"), [("sft", "stages"), ("stages", "sft")])
def test_a_single_run_and_a_pipeline_share_no_directory(there: str, here: str, tmp_path: Path) -> None:
    kinds = {"sft": "a single run", "stages": "a pipeline"}
    claim(tmp_path, get_config(there))
    with pytest.raises(ValueError, match=f"is the directory of {kinds[there]}, and this is {kinds[here]}; choose"):
        check_free(tmp_path, get_config(here))


@pytest.mark.parametrize("content", [*BROKEN, '{"config": "x", "runs": {}}', '{"config": "x", "runs": [{}]}'])
def test_a_sweep_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json cannot be (read|used): .*; delete it, and the command"):
        record(tmp_path, "x", [])
    assert (tmp_path / "sweep.json").read_text() == content


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_result_stops_no_other_run_of_a_sweep(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert "result.json cannot be" in detail(Run(tmp_path, {}, ()), DONE)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result: dict[str, Any] = {"status": "complete", "name": "x", "evaluation": {}, "stages": [{"name": "sft"}]}
    write_json(tmp_path / "result.json", result)
    assert read_result(tmp_path) == result


@pytest.mark.parametrize(
    ("content", "words"), [("[]", "source cannot be used: it holds a list"), ("{", "cannot be read")]
)
def test_a_position_that_is_none_names_its_checkpoint(tmp_path: Path, content: str, words: str) -> None:
    """Where the sums do not tell: they were not written, or the file was wrong when it was saved."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_state(5), {"at": 5})
    checkpoints.close()
    step = tmp_path / "checkpoints" / "5"
    (step / "SHA256SUMS").unlink()
    [file] = [path for path in (step / "source").iterdir() if path.is_file() and '"at"' in path.read_text()]
    file.write_text(content)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RuntimeError, match=f"{step}.*{words}.*move {step} away"):
        checkpoints.restore(small_state(0))
    checkpoints.close()


LATER = ("sample.depth", "micro_batch", "reward", "sample.least", "data.depth_jitter")


def forget(settings: dict[str, Any], names: Sequence[str] = LATER) -> dict[str, Any]:
    """Takes settings, and groups of them, out, as if they had been declared later."""
    for name in names:
        *keys, last = name.split(".")
        group = settings
        for key in keys:
            group = group[key]
        del group[last]
    return settings


def make_older(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(forget(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample.depth": "task"}, r"sample\.depth \(there 0, the default of a later setting, here 'task'\)\. Choose"),
        ({"micro_batch": 4}, r"micro_batch \(there 0, the default of a later setting, here 4\)"),
        ({"reward.center": 0.5}, r"reward\.center \(there 0\.0, the default of a later setting, here 0\.5\)"),
        ({"sample.least": {}}, r"sample\.least\.accuracy \(there 1\.0, the default of a later setting, here None\)"),
        ({"seed": 1}, r"seed \(there 0, here 1\)\. Choose"),
        ({"sample.n": 2, "rl.rewards": {"length": 1.0}}, r"rl\.rewards\.length \(there None, here 1\.0\); sample\.n"),
    ],
)
def test_a_setting_that_was_declared_later_counts_as_its_default(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    claim(tmp_path, get_config())
    make_older(tmp_path)
    config = get_config()
    check_free(tmp_path, config)
    for name, value in changes.items():
        group, _, last = name.rpartition(".")
        owner = config[group] if group else config
        with config.unlocked():
            owner[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=words):
        check_free(tmp_path, config)


def test_a_setting_that_was_declared_later_makes_no_stage_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = get_config("stages")
    stages = graph_of(config, tmp_path)
    with monkeypatch.context() as older:
        older.setattr(train.graph, "fixed_settings", lambda folder, config: forget(fixed_settings(folder, config)))
        inputs = digests(stages)
    for stage in stages:
        claim(stage.folder, stage.config)
        make_older(stage.folder)
        if inputs[stage.name]:
            write_json(stage.folder / INPUTS, inputs[stage.name])
    assert {name: state for name, (state, _) in states(stages).items()} == {"sft": "begun", "grpo": "begun"}
    config.stage.sft.data = ConfigDict({"depth_jitter": 1})
    found = states(graph_of(config, tmp_path))
    assert found["sft"][0] == "changed" and found["grpo"][0] == "stale"
    assert "data.depth_jitter (there 0, the default of a later setting, here 1)" in found["sft"][1]
