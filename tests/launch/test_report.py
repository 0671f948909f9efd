"""Reports: what is grouped, averaged, marked and drawn, from run directories written by hand."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import report
from launch.directions import NOTE, best, binomial_error, direction, is_share
from launch.results import (
    View,
    best_rows,
    choose_metrics,
    curve,
    grouped,
    measure,
    notes,
    over_seeds,
    read_results,
    spent,
    standard_error,
)


def write_run(
    folder: Path, evaluation: dict[str, Any], losses: list[float], more: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """A complete run directory with one line of metrics per loss, and its evaluation as the last line."""
    folder.mkdir(parents=True)
    config = {"name": "x", "seed": 0, "steps": len(losses), "model": {"ffn": "glu", "moe": {"balance": "none"}}}
    for key, value in settings.items():
        *path, last = key.split("__")
        part = config
        for name in path:
            part = part[name]  # type: ignore[assignment]
        part[last] = value
    size = len(str(folder))  # what differs without having been set
    derived = {"resolved": {"vocab_size": size}, "ending": {"tokens": [size], "thoughts": 0}}
    (folder / "config.json").write_text(json.dumps(config | derived))
    (folder / "result.json").write_text(json.dumps({"evaluation": evaluation, "seconds": 12.5, "commit": "c"}))
    lines = [{"step": n, "loss": loss, **(more or {})} for n, loss in enumerate(losses, 1)]
    lines.append({"step": len(losses), **{f"eval/{name}": value for name, value in evaluation.items()}})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture
def balances(tmp_path: Path) -> Path:
    """Two settings with two seeds each, and a run that is not complete."""
    for n, (balance, seed, loss, violation) in enumerate(
        [("none", 0, 2.0, 1.5), ("none", 1, 2.2, 1.7), ("bias", 0, 1.9, 0.1), ("bias", 1, 1.8, 0.2)]
    ):
        losses = [9.0] * 18 + [loss, loss + 0.1]
        folder = tmp_path / f"run{n}"
        more = {"moe/max_violation": violation, "note": "text"}
        write_run(folder, {"answer_loss": loss, "mean_tokens": 5}, losses, more, seed=seed, model__moe__balance=balance)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    return tmp_path


def test_runs_that_differ_in_the_seed_alone_are_one_group(balances: Path) -> None:
    runs, missing = read_results(balances)
    groups = grouped(runs)
    assert [(group.label, len(group.runs)) for group in groups] == [("balance=none", 2), ("balance=bias", 2)]
    assert groups[0].settings == {"model.moe.balance": "none"}
    assert missing == ["broken"]


def test_means_and_deviations_over_seeds(balances: Path) -> None:
    none, bias = grouped(read_results(balances)[0])
    assert over_seeds(none, "eval/answer_loss") == (pytest.approx(2.1), pytest.approx(statistics.stdev([2.0, 2.2])))
    assert over_seeds(bias, "moe/max_violation") == (pytest.approx(0.15), pytest.approx(0.1 / 2**0.5))
    assert over_seeds(bias, "nothing") is None


def test_a_training_metric_is_the_mean_over_the_last_tenth(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {}, [float(n) for n in range(1, 101)])
    [run], _ = read_results(tmp_path)
    assert measure(run, "loss") == statistics.fmean(range(91, 101))
    assert measure(run, "seconds") == 12.5
    assert measure(run, "eval/accuracy") is None


def test_the_table_marks_the_best(balances: Path) -> None:
    assert report.main([str(balances)]) == 0
    assert (balances / "table.md").read_text().splitlines() == [
        "| setting | runs | eval/answer_loss | eval/mean_tokens | loss | moe/max_violation |",
        "| --- | --- | --- | --- | --- | --- |",
        "| balance=none | 2 | 2.10 ± 0.14 | 5 | 2.15 ± 0.14 | 1.60 ± 0.14 |",
        "| balance=bias | 2 | **1.850 ± 0.071** | 5 | **1.900 ± 0.071** | **0.150 ± 0.071** |",
        "",
        "Not complete: broken",
        "",
        NOTE,
    ]


def test_the_csv_has_every_number(balances: Path) -> None:
    report.main([str(balances), "--metrics=eval/answer_loss,seconds"])
    rows = list(csv.DictReader((balances / "table.csv").open()))
    assert [row["model.moe.balance"] for row in rows] == ["none", "bias"]
    assert float(rows[1]["eval/answer_loss"]) == pytest.approx(1.85)
    assert float(rows[1]["eval/answer_loss std"]) == pytest.approx(0.1 / 2**0.5)
    assert (rows[0]["runs"], rows[0]["seconds"], rows[0]["seconds std"]) == ("2", "12.5", "0.0")


def test_sweep_json_gives_the_order(balances: Path) -> None:
    names = ["run3", "run0", "never started", "run1"]
    (balances / "sweep.json").write_text(json.dumps({"config": "x", "runs": [{"name": name} for name in names]}))
    runs, missing = read_results(balances)
    assert [group.label for group in grouped(runs)] == ["balance=bias", "balance=none"]
    assert missing == ["never started", "broken"]


def test_named_settings_are_shown_by_their_names(tmp_path: Path) -> None:
    for name, ffn in (("dense", "glu"), ("PEER 32", "peer")):
        write_run(tmp_path / ffn, {}, [1.0], name=name, model__ffn=ffn)
    groups = grouped(read_results(tmp_path)[0])
    assert [group.label for group in groups] == ["dense", "PEER-32"]
    assert groups[1].settings == {"name": "PEER 32", "model.ffn": "peer"}


def test_one_setting_alone_has_the_name_of_its_config(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), {"accuracy": seed / 2}, [1.0], seed=seed)
    [group] = grouped(read_results(tmp_path)[0])
    assert (group.label, over_seeds(group, "eval/accuracy")) == ("x", (0.5, 0.5))


@pytest.mark.parametrize(
    ("metric", "means", "errors", "rows"),
    [
        ("eval/accuracy", [0.2, 0.9, 0.9], [0, 0, 0], [1, 2]),
        ("eval/accuracy", [0.2, 0.9, 0.85, 0.7], [0.1, 0.02, 0.04, 0.1], [1, 2]),
        ("eval/accuracy_at_depth_4", [0.5, 0.5], [0, 0], [0, 1]),
        ("eval/excess_loss", [0.2, 0.1, None], [0, 0.3, 0], [0, 1]),
        ("eval/answer_loss", [0.2, 0.1, 0.1], [0.0, 0.04, 0.06], [1, 2]),
        ("peer/usage", [0.2, 0.1], [0, 0], [0]),
        ("reward", [0.2, 0.1], [0, 0], [0]),
        ("rewards/format/mean", [0.2, 0.1], [0, 0], [0]),
        ("moe/max_violation", [float("nan"), 3.0, 4.0, float("-inf")], [float("nan"), 0, 0, 0], [1]),
        ("loss", [1.0, 2.0], [float("nan"), 0.5], [0]),
        ("loss", [1.0, None], [0, 0], []),
    ],
)
def test_best(metric: str, means: list[Any], errors: list[float], rows: list[int]) -> None:
    assert best(direction(metric), means, errors) == rows


@pytest.mark.parametrize(
    "metric",
    [
        *("eval/mean_tokens", "time/reward", "reward_std", "frac_reward_zero_std", "rewards/accuracy/std", "entropy"),
        *("kl", "lr", "grad_norm", "policy_loss", "completions/mean_length", "depth/score_correlation", "num_tokens"),
        *("eval/mean_depth", "balance_loss", "step_time", "seconds", "clip_ratio/low_mean", "exit/entropy", "skipped"),
    ],
)
def test_nothing_is_best_of_what_has_no_direction(metric: str) -> None:
    assert best(direction(metric), [1.0, 2.0], [0, 0]) == []


def reinforced(tmp_path: Path) -> Path:
    """Two settings of GRPO, two seeds each, whose loss says nothing and whose evaluations are alike but for noise."""
    for arm, (rate, accuracy) in enumerate(((1e-3, 0.80), (3e-3, 0.82))):
        for seed in (0, 1):
            more = {"reward": 0.5 + arm / 5, "entropy": 1.0 - arm, "kl": 0.1 * arm, "grad_norm": 1.0}
            folder = tmp_path / f"lr={rate},seed={seed}"
            evaluation = {"accuracy": accuracy + 0.03 * seed, "mean_tokens": 9 - arm}
            write_run(folder, evaluation, [-0.1 * arm - 0.01] * 5, more, seed=seed, algorithm="grpo", lr=rate)
    return tmp_path


def test_runs_that_are_reinforced_show_rewards_and_their_loss_is_not_judged(tmp_path: Path) -> None:
    assert report.main([str(reinforced(tmp_path))]) == 0
    assert (tmp_path / "table.md").read_text().splitlines()[:4] == [
        "| setting | runs | eval/accuracy | eval/mean_tokens | reward |",
        "| --- | --- | --- | --- | --- |",
        "| lr=0.001 | 2 | **0.815 ± 0.021** | 9 | 0.5 |",
        "| lr=0.003 | 2 | **0.835 ± 0.021** | 8 | **0.7** |",
    ]
    asked = "loss,kl,entropy,grad_norm,reward"
    assert report.main([str(tmp_path), f"--metrics={asked}"]) == 0
    rows = (tmp_path / "table.md").read_text().splitlines()[2:4]
    assert [row.count("**") for row in rows] == [0, 2], "of the rewards alone"
    groups = grouped(read_results(tmp_path)[0])
    assert best_rows(groups, "loss") == [] and best_rows(groups, "eval/accuracy") == [0, 1]


def test_the_last_stage_decides_what_a_pipeline_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {"accuracy": 1.0}, [], algorithm="sft", stages=["sft", "grpo"])
    config = json.loads((folder / "config.json").read_text())
    config["stage"] = {"sft": {}, "grpo": {"algorithm": "grpo", "eval": {"examples": 9}}}
    (folder / "config.json").write_text(json.dumps(config | {"eval": {"examples": 4}}))
    write_run(folder / "grpo", {"accuracy": 1.0}, [0.1, 0.2], {"reward": 1.0})
    runs, _ = read_results(tmp_path)
    assert choose_metrics(runs) == ["eval/accuracy", "reward"]
    assert runs[0].setting("eval.examples") == 9 and runs[0].setting("steps") == 0
    write_run(tmp_path / "b", {"accuracy": 1.0}, [0.1], algorithm="sft")
    assert choose_metrics(read_results(tmp_path)[0]) == ["eval/accuracy", "reward", "loss"]
    write_run(tmp_path / "c" / "a", {"answer_loss": 1.0}, [0.1], {"reward": 0.5, "score": 0.25}, algorithm="grpo")
    assert choose_metrics(read_results(tmp_path / "c")[0]) == ["eval/answer_loss", "score", "reward"]


def test_a_single_seed_is_as_sure_as_its_examples(tmp_path: Path) -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(0.5, 0) == binomial_error(1.0, 9) == binomial_error(float("nan"), 9) == 0
    assert is_share("eval/pass@4") and not is_share("accuracy") and not is_share("eval/answer_loss")
    for name, accuracy in (("a", 0.50), ("b", 0.56), ("c", 0.30)):
        evaluation = {"accuracy": accuracy, "answer_loss": 1 - accuracy}
        write_run(tmp_path / name, evaluation, [], name=name, eval={"examples": 100})
    groups = grouped(read_results(tmp_path)[0])
    assert standard_error(groups[0], "eval/accuracy") == pytest.approx(0.05)
    assert [best_rows(groups, name) for name in ("eval/accuracy", "eval/answer_loss")] == [[0, 1], [1]]


def test_arms_of_equal_settings_are_rows_and_named(tmp_path: Path) -> None:
    """They are not further seeds of one another."""
    for arm in ("lr=0.001", "lr=1e-3"):
        for seed in (0, 1):
            write_run(tmp_path / f"{arm},seed={seed}", {"accuracy": 0.5}, [1.0], seed=seed)
    write_run(tmp_path / "other", {"accuracy": 0.5}, [1.0], name="other", seed=0)
    groups = grouped(read_results(tmp_path)[0])
    assert [(group.label, len(group.runs)) for group in groups] == [("lr=0.001", 2), ("lr=1e-3", 2), ("other", 1)]
    assert notes(groups, ["eval/accuracy"], [], View()) == [
        "The same settings under several names: lr=0.001, lr=1e-3, other",
        "other has no seed 1",
    ]
    for name in ("again", "once more"):
        write_run(tmp_path / "twice" / name, {}, [1.0])
    assert [group.label for group in grouped(read_results(tmp_path / "twice")[0])] == ["again", "once more"]


def test_runs_with_different_metrics_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"accuracy": 0.5}, [1.0, 2.0], {"reward": 1.0}, seed=0)
    write_run(tmp_path / "b", {"score": 0.5}, [1.0, 2.0], {"entropy": 1.0}, seed=1)
    assert report.main([str(tmp_path), "--metrics=eval/accuracy,eval/score,reward,entropy,loss"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| x | 2 | 0.5 | 0.5 | 1 | 1 | 2 |" in text
    assert "eval/accuracy of x is that of 1 of its 2 runs" in text and "loss of x" not in text
    assert (tmp_path / "plot.png").is_file(), "a curve of those that have it"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((1.06912, 0.00213), "1.0691 ± 0.0021"),
        ((35.21, 13.4), "35 ± 13"),
        ((0.5, None), "0.5"),
        ((5.0, 0.0), "5"),
        ((float("nan"), float("nan")), "nan"),
        (None, ""),
    ],
)
def test_figures(found: Any, text: str) -> None:
    assert report.in_figures(found) == text


def test_an_unknown_metric_names_the_nearest(balances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(balances), "--metrics=loss,moe/max_violaton"]) == 2
    assert "Did you mean 'moe/max_violation'" in capsys.readouterr().err
    assert not (balances / "table.md").exists()
    assert choose_metrics(read_results(balances)[0]) == [
        *("eval/answer_loss", "eval/mean_tokens"),
        *("loss", "moe/max_violation"),
    ]


def test_the_band_is_over_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    for seed, extra in ((0, 0.0), (1, 2.0)):
        folder = write_run(tmp_path / str(seed), {}, [1.0], seed=seed)
        lines = [{"step": step, "eval/x": step + extra} for step in range(10, 60 + 10 * seed, 10)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    [group] = grouped(read_results(tmp_path)[0])
    steps, mean, deviation = report.band(group, "eval/x")
    np.testing.assert_allclose(steps, [10, 20, 30, 40, 50])
    np.testing.assert_allclose(mean, steps + 1)
    np.testing.assert_allclose(deviation, 2**0.5)


def drew(folder: Path, per_step: int, seed: int) -> None:
    """A run that draws so many samples a step, is evaluated after every second one, and compiles in the first."""
    write_run(folder, {"x": 0.4}, [], seed=seed)
    lines: list[dict[str, Any]] = [{"step": 0, "eval/x": 0.0}]
    for step in range(1, 21):
        lines.append({"step": step, "num_samples": per_step, "time": 90.0 if step < 3 else step % 3, "seconds": 0.5})
        lines += [{"step": step, "eval/x": step / 50}] if step % 2 == 0 else []
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_evaluations_are_read_at_equal_samples(tmp_path: Path) -> None:
    drew(tmp_path / "a", 10, seed=0)
    drew(tmp_path / "b", 30, seed=1)
    (few, many), _ = read_results(tmp_path)
    assert spent(few, "num_samples")[20] == 200
    assert spent(few, "")[7] == 7
    view = View(over="num_samples", at=90.0)
    assert measure(few, "eval/x", view) == pytest.approx(9 / 50), "between steps 8 and 10"
    assert measure(many, "eval/x", view) == pytest.approx(3 / 50)
    assert measure(few, "eval/x", View(at=9.0)) == pytest.approx(9 / 50), "steps, where nothing else is given"
    assert measure(few, "eval/x", View(over="num_samples", at=201.0)) is None, "never drawn"
    assert measure(few, "eval/x", View(over="num_samples", at=-1.0)) is None
    assert measure(few, "eval/x") == 0.4
    [group] = grouped([few, many])
    places, mean, _ = report.band(group, "eval/x", "num_samples")
    np.testing.assert_allclose(places, 40 * np.arange(11))
    np.testing.assert_allclose(mean, np.arange(11) / 25)


def test_medians_and_rates_leave_out_what_compiles(tmp_path: Path) -> None:
    drew(tmp_path / "a", 10, seed=0)
    [run], _ = read_results(tmp_path)
    assert measure(run, "time", View(median=True)) == 1
    assert measure(run, "num_samples:seconds") == 20
    assert measure(run, "num_samples:time") == pytest.approx(180 / sum(step % 3 for step in range(3, 21)))
    assert measure(run, "eval/x", View(median=True)) == 0.4
    assert report.main([str(tmp_path), "--metrics=time,num_samples:seconds", "--median", "--over=num_samples"]) == 0
    assert (tmp_path / "table.md").read_text().splitlines()[-1] == "| x | 1 | 1 | 20 |"
    assert report.main([str(tmp_path), "--over=num_sample"]) == 2


def test_the_picture(balances: Path) -> None:
    groups = grouped(read_results(balances)[0])
    assert report.plot(groups, ["loss", "moe/max_violation", "eval/answer_loss"], balances / "plot.png")
    assert (balances / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not list(balances.glob(".plot*"))
    assert not report.plot(groups, ["eval/answer_loss"], balances / "none.png"), "one point is no curve"
    assert not (balances / "none.png").exists()


def test_infinite_values_are_read_and_drawn_around(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"answer_loss": "nan"}, [1.0, 2.0, 3.0])
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": "inf"}\n')
    [run], _ = read_results(tmp_path)
    assert np.isnan(measure(run, "eval/answer_loss"))
    assert curve(run, "loss")[1][-1] == np.inf
    assert report.main([str(tmp_path)]) == 0
    losses = [3.0, float("nan"), 2.0, 1.0, float("-inf"), float("inf")]
    write_run(tmp_path / "b", {"answer_loss": "-inf"}, losses, seed=1)
    assert report.main([str(tmp_path)]) == 0
    _, mean, _ = report.band(grouped(read_results(tmp_path / "b")[0])[0], "loss")
    np.testing.assert_allclose(mean[[0, 2, 3]], [3, 2, 1], err_msg="one that is not finite ends no curve")


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "there is no folder"), ("", "no complete run"), ("file", "is a file"), ("torn", "cannot be read")],
)
def test_nothing_to_report(tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    if name == "torn":
        (write_run(tmp_path / "torn", {}, [1.0]) / "result.json").write_text('{"evaluation": {')
    assert report.main([str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


def test_hostile_text_in_the_files_of_a_run_reaches_every_report(tmp_path: Path) -> None:
    """An escape such as \\ud800 is JSON, and no UTF-8."""
    folder = write_run(tmp_path / "a", {"accuracy": 0.5}, [1.0, 2.0], name="\ud800")
    write_run(tmp_path / "b", {"accuracy": 0.5}, [1.0, 2.0], name="|\udfff")
    (folder / "samples.jsonl").write_text(json.dumps({"step": 1, "completion": "\ud800", "reason": "\udc80"}) + "\n")
    assert report.main([str(tmp_path)]) == 0
    for name in ("table.csv", "report.html"):
        assert "\ufffd" in (tmp_path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["result.json", "config.json", "sweep.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["[]", "{}", "", '{"evaluation": {', "5", '{"runs": [1], "config": "x"}'])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "sweep" / "a", {"accuracy": 0.5}, [1.0, 2.0])
    path = (folder.parent if name == "sweep.json" else folder) / name
    path.write_text(f"{content}\n" * 2 if name == "metrics.jsonl" else content)
    whole = name == "metrics.jsonl" and not content
    assert report.main([str(folder.parent)]) == (0 if whole else 2)
    found = capsys.readouterr().err
    assert whole or (str(path) in found and (" cannot be " in found or " is no JSON" in found))
