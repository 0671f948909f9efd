"""What a run says to files in its directory that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer.load import open_origin
from launch.board import detail
from launch.runs import DONE, Run
from launch.sweep import record
from store.checkpoint import Checkpoints
from store.records import write_json
from store.run_directory import claim, read_result
from tests.tiny_config import get_config
from tests.train.test_loop import small_state
from train.loop import run

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
