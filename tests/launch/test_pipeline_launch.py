"""Stages begun once those that they need are complete, and not at all where one of these failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launch.pipeline import stage_runs
from launch.runs import DONE, FAILED, Run, train_all
from train.cli import parse


@dataclass
class Trained:
    """A job that ends when it is looked at, with a result unless it fails."""

    run: Run
    fails: bool

    def poll(self) -> str:
        """Its end."""
        if self.fails:
            return FAILED
        self.run.folder.mkdir(parents=True)
        (self.run.folder / "result.json").write_text("{}")
        return DONE

    def stop(self) -> None:
        """Nothing to stop."""


def runs(folder: Path) -> list[Run]:
    flags = ["--config=tests/tiny_config.py:graph", f"--workdir={folder}"]
    return stage_runs(parse(["train", *flags], "usage"), flags)


def test_every_stage_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    begun: list[str] = []

    def submit(run: Run, slot: int) -> Trained:
        assert all(other.complete for other in run.after), run.name
        begun.append(run.name)
        return Trained(run, False)

    found = runs(tmp_path / "p")
    assert found[1].command[-1] == "--only=sample" and [run.name for run in found[1].after] == ["sft"]
    train_all(list(reversed(found)), 2, lambda run, state: None, submit)
    assert sorted(begun) == sorted(run.name for run in found) and begun[0] == "sft"


def test_what_comes_after_a_failure_is_told(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    found = runs(tmp_path / "p")
    train_all(
        found, 2, lambda run, state: told.update({run.name: state}), lambda run, slot: Trained(run, run.name == "pairs")
    )
    assert {name for name, state in told.items() if state == DONE} == {"sft", "sample", "rejected"}
    assert told["dpo"] == told["hub"] == FAILED
    assert "not started: pairs did not finish" in (tmp_path / "p" / "dpo.log").read_text()
