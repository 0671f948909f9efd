"""Accuracy by difficulty: runs of a model together, a table and a picture, and plain words where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.difficulty import by_model, main, measured, table


def run(folder: Path, accuracies: dict[str, float]) -> Path:
    """A directory with the metrics of a run; the earlier evaluation does not count."""
    folder.mkdir(parents=True)
    early = {"step": 1, "compute/flops": 1e9, **{f"eval/accuracy_steps_{n}": 0.0 for n in accuracies}}
    last = {"step": 2, "compute/flops": 3e9, **{f"eval/accuracy_steps_{n}": value for n, value in accuracies.items()}}
    last |= {"eval/accuracy_steps_2_at_depth_4": 0.3}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (early, last)))
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_line(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "loop,seed=0", {"2": 1.0, "10": 0.5}),
        run(tmp_path / "loop,seed=1", {"2": 1.0, "10": 0.9}),
        run(tmp_path / "stack,seed=0", {"2": 0.25, "10": 0.0}),
    ]
    models = by_model(folders, "steps")
    assert {name: len(runs) for name, runs in models.items()} == {"loop": 2, "stack": 1}
    assert models["loop"][0].accuracy == {2: 1.0, 10: 0.5} and models["loop"][0].flops == 3e9
    lines = table(models).splitlines()
    assert lines[0] == "| model | 2 | 10 | FLOPs | seeds |"
    assert lines[2] == "| loop | 1.00 | 0.70 (0.50-0.90) | 3.0e+09 | 2 |"


def test_the_command_draws_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "runs" / "loop,seed=0", {"1": 1.0, "2": 0.9})
    (tmp_path / "runs" / "sweep.json").write_text("{}")
    picture = tmp_path / "picture.png"
    assert main([f"{tmp_path}/runs/*", "--trained=1", f"--output={picture}"]) == 0
    assert picture.stat().st_size > 5000
    assert "| loop | 1.00 | 0.90 | 3.0e+09 | 1 |" in capsys.readouterr().out


def test_runs_without_such_accuracies_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "loop", {"1": 1.0})
    with pytest.raises(ValueError, match=r"no accuracy by 'hops': evaluate with --config\.eval\.by=hops"):
        measured(folder, "hops")
    assert main([str(tmp_path / "nowhere")]) != 0
    assert "nowhere" in capsys.readouterr().err
