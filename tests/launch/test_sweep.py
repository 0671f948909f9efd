"""Sweeps: names, what is refused before anything starts, and a sweep of which one run breaks."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import report, sweep
from launch.board import Board, detail, last_line
from launch.local import local
from launch.runs import DONE, FAILED, RUNNING, STOPPED, Report, Run, hear_interrupts, train_all
from tests.launch.dummies import FINISH, dummy
from train.pipeline import runs_of

ROOT = Path(__file__).parents[2]
CONFIG = "tests/launch/sweep_config.py"
BROKEN, FINE = "lr=1e+38,seed=0", "lr=0.003,seed=0"


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """The repository as the current folder, and one device for the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("XLA_FLAGS", "")
        yield


def swept(workdir: Path, *flags: str) -> int:
    """The exit code of `python -m launch.sweep`."""
    return sweep.main([f"--config={CONFIG}", f"--workdir={workdir}", *flags])


def config_file(folder: Path, body: str) -> str:
    """A config file of tiny runs with this body of `sweep()`."""
    path = folder / "recipe.py"
    path.write_text(f"from tests.tiny_config import get_config as get_config\n\ndef sweep():\n    {body}\n")
    return str(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs, the first of which broke."""
    workdir = tmp_path_factory.mktemp("sweep") / "runs"
    assert swept(workdir) == 1
    return workdir


def test_one_broken_run_does_not_stop_the_others(done: Path) -> None:
    assert not (done / BROKEN / "result.json").exists()
    assert "not finite" in (done / f"{BROKEN}.log").read_text()
    result = json.loads((done / FINE / "result.json").read_text())
    assert result["status"] == "complete"
    assert json.loads((done / FINE / "config.json").read_text())["optimizer"]["lr"] == 3e-3
    assert json.loads((done / "sweep.json").read_text()) == {
        "config": CONFIG,
        "runs": [
            {"name": BROKEN, "overrides": {"optimizer.lr": 1e38, "seed": 0}},
            {"name": FINE, "overrides": {"optimizer.lr": 3e-3, "seed": 0}},
        ],
    }


def test_the_report_of_it_has_the_complete_run_and_names_the_other(done: Path) -> None:
    assert report.main([str(done)]) == 0
    table = (done / "table.md").read_text()
    loss = json.loads((done / FINE / "result.json").read_text())["evaluation"]["answer_loss"]
    assert f"| {loss:.5g} |" in table
    assert f"Not complete: {BROKEN}" in table
    assert (done / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_runs_only_what_is_not_complete(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / FINE / "result.json").stat().st_mtime_ns, (done / f"{FINE}.log").read_text()
    started: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train_all", lambda runs, *_: started.extend(run.name for run in runs))
        assert swept(done) == 1
    assert started == [BROKEN]
    assert swept(done, f"--filter={FINE}") == 0
    assert before == ((done / FINE / "result.json").stat().st_mtime_ns, (done / f"{FINE}.log").read_text())
    assert "1 runs complete" in capsys.readouterr().out


def test_a_flag_may_clash_with_a_run_that_is_left_out(tmp_path: Path) -> None:
    config = config_file(tmp_path, 'yield {"name": "short", "steps": 2}\n    yield {"name": "plain"}')
    flags = (f"--config={config}", f"--workdir={tmp_path / 'runs'}", "--dry_run", "--config.steps=3")
    assert sweep.main([*flags, "--filter=plain"]) == 0
    assert sweep.main([*flags]) == 2


def test_a_dry_run_prints_the_commands_and_writes_nothing(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept(done, "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["to", "complete"]
    flags = f"--config={CONFIG} --workdir={done / FINE} --config.optimizer.lr=0.003 --config.seed=0"
    assert lines[1].endswith(f"python -m train {flags}")
    assert swept(tmp_path / "new", "--dry_run", "--filter=0.003", "--config.steps=2") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("--config.steps=2")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield {'optimizer.lr': 1e-3}; yield {'optimizer.lrr': 1e-3}", "Did you mean 'optimizer.lr'"),
        ("yield {'model.moe.n_expertz': 3}", "Did you mean 'model.moe.n_experts'"),
        ("yield {'optimizr.lr': 1e-3}", "Did you mean 'optimizer.lr'"),
        ("yield {'steps': 'many'}", "steps"),
        ("yield {'data.options.digit': 2}", "Did you mean 'digits'"),
        ("yield {'data.stop': 'END'}", "is to have data.stop='END', but its flags make that ('END',)"),
        ("yield {'seed': 1}; yield {'seed': 1}", "2 of the runs would be named 'seed=1'"),
        ("yield {}", "give each its own short 'name'"),
        ("yield {'init_from': 'x' * 201}", "give each its own short 'name'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    body: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--config={config_file(tmp_path, body)}", f"--workdir={tmp_path / 'runs'}"]
    assert sweep.main(flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--launcher=slrm"], "unknown launcher 'slrm'. Did you mean 'slurm'? Choices: local, ray, slurm"),
        (["--paralel=2"], "paralel"),
        (["--parallel=0"], "at least 1, found 0"),
        (["--filter=momentum"], f"there are {BROKEN}, {FINE}"),
        (["--config.steps=many"], "steps"),
        (["--config.seed=3"], f"{BROKEN} is to have seed=0, but its flags make that 3"),
        (["--config=configs/nowhere.py"], "no config file at configs/nowhere.py"),
        (["--config=tests/tiny_config.py"], "has no sweep()"),
    ],
)
def test_wrong_use_is_one_paragraph(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept(tmp_path / "runs", *flags) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_directories_of_something_else_are_refused(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept(done, "--config.optimizer.b1=0.5") == 2
    assert "belongs to a run with another config; it differs in optimizer.b1" in capsys.readouterr().err
    assert swept(done / FINE) == 2
    assert "the directory of a single run" in capsys.readouterr().err
    other = config_file(tmp_path, "yield {'seed': 4}")
    assert sweep.main([f"--config={other}", f"--workdir={done}"]) == 2
    assert f"holds the sweep of {CONFIG}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        "yield {'rl.samples': 4}; yield {'rl.samples': 16}",
        "yield {'model.moe.top_k': 1}; yield {'model.moe.top_k': 2}",
        "yield {'name': 'a', 'thoughts.gamma': 0.5}; yield {'name': 'b'}",
    ],
)
def test_arms_that_would_be_the_same_run_are_refused(
    body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One setting of another algorithm, one of a slot that the model has not, one arm that leaves out what is usual."""
    flags = [f"--config={config_file(tmp_path, body)}", f"--workdir={tmp_path / 'runs'}"]
    assert sweep.main(flags) == 2
    assert "would be the same run twice" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_a_sweep_changes_wins_over_stages(tmp_path: Path) -> None:
    config = "tests/tiny_config.py:stages"
    body = [
        {"rl.samples": 2},
        {"rl.samples": 4},
        {"steps": 3},
        {"data.options.digits": 2},
        {"rl.rewards.format": 0.5},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "changes_of", lambda path: body)
        runs = sweep.plan(config, tmp_path)
    resolved = [runs_of(sweep.check(run)) for run in runs]
    assert [[stage.rl.samples for stage in stages] for stages in resolved[:2]] == [[2, 2], [4, 4]]
    assert [[stage.steps for stage in stages] for stages in (resolved[0], resolved[2])] == [[2, 2], [3, 3]]
    assert [stage.data.options.digits for stage in resolved[3]] == [2, 2]
    assert [stage.rl.rewards.format for stage in resolved[4]] == [0.5, 0.5]
    assert [run.steps for run in runs[:3]] == [(2, 2), (2, 2), (3, 3)]


def test_a_flag_for_one_stage_that_undoes_a_setting_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, "yield {'rl.samples': 2}")
    Path(config).write_text(Path(config).read_text().replace("get_config as get_config", "get_config as tiny", 1))
    with open(config, "a") as file:
        file.write('\n\ndef get_config():\n    return tiny("stages")\n')
    flags = [f"--config={config}", f"--workdir={tmp_path / 'runs'}", "--config.stage.grpo.rl.samples=8"]
    assert sweep.main(flags) == 2
    assert "is to have rl.samples=2, but its flags make that 8" in capsys.readouterr().err


def test_names_are_short_where_that_is_unambiguous() -> None:
    changes = [
        {"model.moe.balance": "bias", "rl.scale": "none", "model.moe.scale": 2.5, "seed": 1},
        {"name": "peer 32/32", "model.ffn": "peer", "seed": 0},
        {"name": "alone"},
        {"stages": ("sft", "grpo"), "optimizer.lr": 1e-05},
    ]
    assert sweep.run_names(changes) == [
        "balance=bias,rl.scale=none,model.moe.scale=2.5,seed=1",
        "peer-32-32,seed=0",
        "alone",
        "stages=-sft-,-grpo-,lr=1e-05",
    ]


def run_locally(runs: list[Run], parallel: int, report: Report) -> None:
    """Trains on this machine."""
    with local(runs, parallel) as submit:
        train_all(runs, parallel, report, submit)


def test_runs_go_side_by_side_and_report_their_states(tmp_path: Path) -> None:
    meet = "[time.sleep(.01) for _ in range(3000) if not pathlib.Path({!r}).exists()]"
    marks = [str(tmp_path / name) for name in ("one", "two")]
    scripts = [f"open({own!r}, 'w'); {meet.format(other)}; {FINISH}" for own, other in (marks, reversed(marks))]
    runs = [dummy(tmp_path, f"run{n}", script) for n, script in enumerate([*scripts, "sys.exit(3)", "print('saved')"])]
    seen: dict[str, list[str]] = {run.name: [] for run in runs}
    run_locally(runs, 2, lambda run, state: seen[run.name].append(state))
    assert [states[-1] for states in seen.values()] == [DONE, DONE, FAILED, STOPPED]
    assert seen["run0"].count(DONE) == 1
    assert detail(runs[0], DONE) == "seconds 2.25"
    assert detail(runs[3], STOPPED) == "saved"


def test_a_stopped_sweep_lets_its_runs_save_first(tmp_path: Path) -> None:
    save = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'saved')!r}, 'w'), sys.exit(0)))"
    wait = f"open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(60)"
    runs = [dummy(tmp_path, "a", f"{save}; {wait}"), dummy(tmp_path, "b", FINISH)]

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    states: list[tuple[str, str]] = []
    run_locally(runs, 1, lambda run, state: states.append((run.name, state)))
    assert (tmp_path / "saved").exists()
    assert states[-1] == ("a", STOPPED)
    assert not runs[1].complete, "nothing starts after the stop"


def test_the_board_prints_a_line_per_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [dummy(tmp_path, name, "") for name in ("a", "b")]
    runs[0].log.write_text("[sft] compiling\n\n")
    with Board(runs) as board:
        for state in (RUNNING, RUNNING, FAILED):
            board(runs[0], state)
    assert capsys.readouterr().out.splitlines() == [
        "[1 running, 1 waiting] a: running  [sft] compiling",
        "[1 failed, 1 waiting] a: failed  [sft] compiling",
    ]


def test_the_board_is_a_table_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    runs = [dummy(tmp_path, name, "") for name in ("a", "b")]
    runs[0].log.write_text("[sft] step 3\n")
    with Board(runs) as board:
        board(runs[0], RUNNING)
    output = capsys.readouterr().out
    assert "1 running, 1 waiting" in output and "[sft] step 3" in output


def test_the_last_line_is_found_without_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * 100 + b"\n\xff last \n \n")
    assert last_line(path, 20) == "\ufffd last"
    path.write_text("")
    assert last_line(path) == ""


def test_what_a_shell_put_into_the_background_hears_interrupts_again() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        hear_interrupts()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)
