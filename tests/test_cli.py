"""The command lines on a tiny run: train it, ask it, measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

import infer.__main__
import train.__main__

CONFIG = "--config=tests/tiny_config.py:stages"


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Any:
    """One of the eight devices, and the repository as the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        patch.chdir(Path(__file__).parents[1])
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, trained through the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert train.__main__.main(["train", CONFIG, f"--workdir={folder}", "--config.seed=3"]) == 0
    return folder


def asked(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What `python -m infer` prints."""
    assert infer.__main__.main([f"--run={folder}", *flags]) == 0
    return capsys.readouterr().out


def test_overrides_reach_the_run(trained: Path) -> None:
    for folder in (trained, trained / "sft", trained / "grpo"):
        assert json.loads((folder / "config.json").read_text())["seed"] == 3


def test_a_finished_run_says_what_came_out_and_where_it_lies(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.__main__.main(["train", CONFIG, f"--workdir={trained}", "--config.seed=3"]) == 0
    output = capsys.readouterr().out
    for wanted in ("accuracy", "sft", "grpo", "curves.png", "result.json", f"-m infer --run={trained}"):
        assert wanted in output


@pytest.mark.parametrize("samples", [1, 3])
def test_a_prompt_is_continued(trained: Path, samples: int, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--prompt=1+2=", f"--samples={samples}", "--max_new_tokens=4")
    lines = asked(trained, capsys, *flags).splitlines()
    assert len(lines) == samples
    assert all(line.startswith("1+2=") for line in lines)
    assert asked(trained, capsys, *flags).splitlines() == lines


def test_a_task_is_measured(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task=own", "--samples=2", "--examples=3", "--slots=4", f"--output={tmp_path / 'answers.jsonl'}")
    found = json.loads(asked(trained, capsys, *flags))
    assert found["examples"] == 3
    assert {"accuracy", "pass@2", "mean_tokens", "seconds"} <= set(found)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6
    assert found["score"] == pytest.approx(sum(answer["score"] for answer in answers) / 6)


def test_one_stage_and_one_step_can_be_asked_for(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--prompt=1+2=", "--max_new_tokens=4")
    assert asked(trained / "grpo", capsys, *flags, "--step=2") == asked(trained, capsys, *flags)
    assert asked(trained / "sft", capsys, *flags).startswith("1+2=")


def test_help_lists_flags_recipes_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.__main__.main(["train", "--help"]) == 0
    assert {"--workdir", "configs/quickstart.py"} <= set(capsys.readouterr().out.split())
    assert train.__main__.main(["train", CONFIG, "-h"]) == 0
    assert "stage.grpo.steps = 2" in capsys.readouterr().out
