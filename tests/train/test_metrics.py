"""The run directory's writers and readers, the curves and the progress bar."""

import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from store import records
from store.records import read_lines, read_metrics, write_json
from store.terminal import one_line, visible
from train import cli, pipeline
from train.console import Console
from train.curves import concatenate, plot_curves, present, series, smooth
from train.metrics import MetricsWriter, SamplesWriter
from train.notebook import Live
from train.progress import plain_line, progress


def write_run(folder: Path, steps: int, **series: float) -> Path:
    """A run directory whose metrics grow or fall linearly."""
    writer = MetricsWriter(folder)
    for step in range(1, steps + 1):
        writer.write(step, {name: slope * step / steps for name, slope in series.items()})
    writer.close()
    return folder


def test_round_trip_of_every_kind_of_value(tmp_path: Path) -> None:
    values = {
        "loss": jnp.float32(0.5),
        "count": np.int64(3),
        "load": jnp.array([1.0, 2.0]),
        "note": "text",
        "nan": jnp.nan,
        "inf": -math.inf,
    }
    MetricsWriter(tmp_path).write(7, values)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line.endswith("\n") and json.loads(line, parse_constant=pytest.fail)
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record.pop("nan"))
    assert record == {"step": 7, "loss": 0.5, "count": 3, "load": [1, 2], "note": "text", "inf": -math.inf}


def test_a_resumed_run_has_no_duplicates(tmp_path: Path) -> None:
    write_run(tmp_path, 5, loss=1)
    SamplesWriter(tmp_path).write(4, [{"text": "old"}])
    writer, samples = MetricsWriter(tmp_path, 3), SamplesWriter(tmp_path, 3)
    for step in (4, 5, 6):
        writer.write(step, {"loss": -1})
    samples.write(4, [{"text": "a"}, {"text": "b"}])
    assert [(r["step"], r["loss"] > 0) for r in read_metrics(tmp_path)] == [
        *((step, True) for step in (1, 2, 3)),
        *((step, False) for step in (4, 5, 6)),
    ]
    texts = [json.loads(line)["text"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert texts == ["a", "b"]


def test_a_fresh_start_drops_everything(tmp_path: Path) -> None:
    MetricsWriter(tmp_path).write(0, {"loss": 1})
    MetricsWriter(tmp_path)
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_survived(tmp_path: Path) -> None:
    write_run(tmp_path, 2, loss=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    MetricsWriter(tmp_path, 2).write(3, {"loss": 1})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_metrics_are_read_of_a_folder_and_of_the_file(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 2, loss=math.inf)
    records = [{"step": 1, "loss": math.inf}, {"step": 2, "loss": math.inf}]
    assert read_metrics(tmp_path / "run") == read_metrics(str(tmp_path / "run" / "metrics.jsonl")) == records
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert read_metrics(tmp_path / "run") == []


def test_no_metrics_are_told_from_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.jsonl"):
        with pytest.raises(FileNotFoundError, match="give the directory of a run"):
            read_metrics(folder)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    assert read_metrics(tmp_path / "begun") == []
    for stage in ("sft", "grpo"):
        write_run(tmp_path / "begun" / stage, 1, loss=1)
    for read in (read_metrics, lambda path: plot_curves(path, tmp_path / "x.png")):
        with pytest.raises(FileNotFoundError, match=r"stages.*begun/grpo, .*begun/sft"):
            read(tmp_path / "begun")


def test_samples_exist_even_without_a_sample(tmp_path: Path) -> None:
    SamplesWriter(tmp_path / "run").close()
    assert (tmp_path / "run" / "samples.jsonl").read_text() == ""


def test_write_json_replaces_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"accuracy": jnp.float32(0.25), "worst": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.25, "worst": "nan"}

    def fail(*_: Any) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_json(path, {"accuracy": 1})
    assert json.loads(path.read_text())["accuracy"] == 0.25


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_tracker_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"sagax\[track\]"):
        MetricsWriter(tmp_path, **{tracker: True})  # type: ignore[arg-type]


def test_trackers_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    run = SimpleNamespace(log=lambda scalars, step: seen.append((step, scalars)), finish=lambda: seen.append("end"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    writer = MetricsWriter(tmp_path, wandb=True)
    writer.write(2, {"loss": jnp.float32(1.5), "note": "text", "load": [1, 2]})
    writer.close()
    assert seen == [(2, {"loss": 1.5}), "end"]


def test_curves_of_several_stages(tmp_path: Path) -> None:
    sft = write_run(tmp_path / "sft", 30, loss=2, **{"eval/accuracy": 0.5})
    grpo = write_run(tmp_path / "grpo", 40, reward=0.9, loss=-0.1, entropy=1.2, kl=0.02)
    assert plot_curves([sft, grpo], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("name", [r"$\frac$", "a $x_$ b", "_hidden", "[red]"])
def test_names_of_stages_are_text(name: str, tmp_path: Path) -> None:
    """Not mathematics, which matplotlib would see between two signs of the dollar."""
    folders = [write_run(tmp_path / kind / name, 3, loss=1) for kind in ("a", "b")]
    assert plot_curves(folders, tmp_path / name / "curves.png")


def test_stages_follow_one_another(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", 3, loss=1), write_run(tmp_path / "b", 2, loss=1)
    stages = concatenate([first, second])
    assert series(stages[1], "loss")[0] == [4, 5]
    assert present(stages, ("loss", "kl")) == ["loss"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert not plot_curves(write_run(tmp_path, 3, tokens=5), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_infinite_values_are_left_out_of_the_curve(tmp_path: Path) -> None:
    MetricsWriter(tmp_path).write(1, {"loss": math.inf})
    assert series(("run", 0, read_metrics(tmp_path)), "loss") == ([], [])


def test_smoothing_is_a_symmetric_mean() -> None:
    np.testing.assert_allclose(smooth([1, 2, 3, 10, 3], share=0.5), [1, 2, 5, 16 / 3, 3])
    np.testing.assert_allclose(smooth(range(50)), range(50))
    holed = [1, 2, math.nan, math.inf, 3]
    np.testing.assert_allclose(smooth(holed, share=0.5), [1, 1.5, 2, 3, 3], err_msg="of what is finite around")
    assert np.isnan(smooth([1, math.nan, 1])[1])


def test_progress_prints_plain_lines_and_nests(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("outer", 2, every=0) as outer, progress("inner", 4, every=0) as inner:
        inner.update(3)
        outer.advance("reward 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("inner 3/4 (75 %)")
    assert lines[1].startswith("outer 1/2 (50 %)") and lines[1].endswith("reward 0.5")


def test_progress_is_quiet_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("short", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert bar.done == 3 and capsys.readouterr().out == ""


def test_progress_on_a_terminal_nests(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with progress("outer", 5, 2) as outer, progress("inner", 4) as inner:
        inner.advance("[bracketed caption")
        outer.update(4)
    assert (inner.done, outer.done) == (1, 4)


def test_plain_line() -> None:
    assert plain_line("sft", 120, 400, 4.0, "reward 0.5") == "sft 120/400 (30 %), 4/s, 1:10 left  reward 0.5"
    assert plain_line("sft", 0, 0, 0.0, "") == "sft 0/0 (0 %)"


HOSTILE, CLEAN = "a\ud800b\udfff\udc80", "a\ufffdb\ufffd\ufffd"


def test_no_text_is_too_much_for_a_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """UTF-8 has no lone surrogates; Python's texts may, and so may escapes in files that others wrote."""
    record = {"kind": HOSTILE, HOSTILE: [{"reason": HOSTILE}, (HOSTILE, ValueError(HOSTILE))]}
    clean = {"kind": CLEAN, CLEAN: [{"reason": CLEAN}, [CLEAN, CLEAN]]}
    SamplesWriter(tmp_path).write(1, [record])
    MetricsWriter(tmp_path).write(1, {HOSTILE: 0.5, "note": HOSTILE})
    write_json(tmp_path / "result.json", record)
    records.replace_text(tmp_path / "table.md", HOSTILE)
    Console(HOSTILE).say(HOSTILE)
    assert read_lines(tmp_path / "samples.jsonl") == [{"step": 1, **clean}]
    assert read_metrics(tmp_path) == [{"step": 1, CLEAN: 0.5, "note": CLEAN}]
    assert json.loads((tmp_path / "result.json").read_bytes()) == clean
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == CLEAN
    assert capsys.readouterr().out == f"[{one_line(HOSTILE)}] {visible(HOSTILE)}\n"


def test_escaped_surrogates_on_the_disk_are_read_and_kept_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 1, "completion": HOSTILE}) + "\n")
    SamplesWriter(tmp_path, 1).write(2, [{"completion": "b"}])
    assert [record["completion"] for record in read_lines(tmp_path / "samples.jsonl")] == [CLEAN, "b"]


def test_a_line_that_ends_inside_a_character_is_torn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes('{"step": 1}\n{"step": 2, "note": "ä'.encode()[:-1])
    MetricsWriter(tmp_path, 2).write(3, {})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3]


@pytest.mark.parametrize("line", ["[]", "5", "{}", '{"step": "x"}', "null"])
def test_a_line_that_is_no_record_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 cannot be used: "):
        MetricsWriter(tmp_path, 1)


def test_the_last_words_of_a_run_take_any_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts and names are no markup, and no text steers the terminal; a loss may have become infinite."""
    hostile = "[/INST] [bold]x[/x] \x1b[2J :smile: \ud800"
    SamplesWriter(tmp_path).write(
        1, [{"kind": "eval", "prompt": hostile, "completion": hostile, "score": 1.0}] * 2 + [{"prompt": "no kind"}]
    )
    stages = [{"name": "[/a]", "accuracy": 0.5, "answer_loss": "inf", "seconds": 1.0}]
    cli.report({"status": "complete", "name": "[/b]", "stages": stages}, tmp_path)
    out = capsys.readouterr().out
    for part in ("[/INST] [bold]x[/x] \\x1b[2J :smile: \ufffd", "[/a]", "[/b]", " inf "):
        assert part in out
    assert "\x1b[2J" not in out


def test_what_models_write_does_not_end_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines, and JSON leaves them as they are."""
    folders = [tmp_path / name for name in ("sft", "grpo")]
    texts = ["a\u2028b", "c\u0085d"]
    for folder, text in zip(folders, texts, strict=True):
        folder.mkdir()
        writer = SamplesWriter(folder)
        writer.write(1, [{"kind": "eval", "completion": text}])
        writer.close()
    pipeline.gather_samples(folders, tmp_path)
    found = read_lines(tmp_path / "samples.jsonl")
    assert [record["completion"] for record in found] == texts
    assert cli._records(tmp_path) == found


def test_the_table_of_a_notebook() -> None:
    """The latest rows, a step's values together, and no clock once it has ended."""
    live = Live("sft", 40, 0)
    assert live.title() == "sft 0/40"
    for step in range(12):
        live.rows.append((step, {"loss": 1 / (step + 1), "unknown": 3.0}))
    live.done = 12
    assert "left" in live.title()
    live.ended = True
    assert live.title() == "sft 12/40"
    screen = rich.console.Console(width=80, record=True, file=io.StringIO())
    screen.print(live.renderable())
    text = screen.export_text()
    assert "0.08333" in text
    assert "unknown" not in text
