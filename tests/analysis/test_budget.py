"""s1's metrics by their golden values, results as they may be written, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.budget import control, draw, joined, main, performance, read_results, scaling, tables

TOKENS, ACCURACY = [500, 1000, 2000, 4000, 7320], [0.10, 0.20, 0.30, 0.40, 0.57]


def result(strategy: str = "budget", budget: Any = 8, **values: Any) -> dict[str, Any]:
    return {"strategy": strategy, "budget": budget, "tokens": 8.0, "accuracy": 0.5} | values


def curve(strategy: str = "budget") -> list[dict[str, Any]]:
    rows = zip(TOKENS, ACCURACY, strict=True)
    return [result(strategy, tokens, tokens=tokens, accuracy=accuracy) for tokens, accuracy in rows]


def test_the_golden_metrics() -> None:
    assert scaling(TOKENS, ACCURACY) == pytest.approx(8.6513e-5, rel=1e-5)
    assert scaling(TOKENS[::-1], ACCURACY[::-1]) == pytest.approx(scaling(TOKENS, ACCURACY))
    assert performance(ACCURACY) == 0.57
    assert control(TOKENS, 500, 4000) == 0.8 and control(TOKENS) == 1 and control(TOKENS, 501) == 0.8
    assert control(TOKENS, 0, [500, 999, 2000, 4096, 7000]) == pytest.approx(0.6)


def test_pairs_of_as_many_tokens_have_no_slope() -> None:
    assert scaling([1, 1, 3], [0.1, 0.3, 0.5]) == pytest.approx((0.4 + 0.2) / 2 / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling([5.0], [0.5]), "two runs of different tokens, got 1"),
        (lambda: scaling([5.0, 5.0], [0.5, 0.6]), r"two runs of different tokens, got 2 of \{5.0\}"),
        (lambda: scaling([5.0, np.nan], [0.5, 0.6]), "finite"),
        (lambda: scaling([], []), "at least one run"),
        (lambda: control([], 0, 5), "at least one run"),
        (lambda: control([1.0], 5, 4), "low <= high"),
        (lambda: performance([]), "at least one run"),
    ],
)
def test_metrics_of_too_little_are_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_runs_of_one_strategy_and_budget_are_one_point() -> None:
    seeds = [
        result(tokens=6.0, accuracy=0.4, flops=10),
        result("plain", None, tokens=1),
        result(accuracy=0.6, flops=20),
    ]
    first, second = joined(seeds)
    assert (first.strategy, first.budget, first.runs) == ("budget", "8", 2)
    assert (first.tokens, first.accuracy, first.flops) == (7.0, 0.5, 15.0)
    assert first.deviation == pytest.approx(0.1 * 2**0.5)
    assert (second.strategy, second.budget, second.runs, second.deviation, second.flops) == ("plain", "", 1, 0.0, None)


def test_tables_tell_points_and_metrics() -> None:
    text = tables(joined([*curve(), result("a|b", tokens=3)]), low=600, high=8000)
    assert "| budget | 7320 | 1 | 7320.0 | 0.570 |  |" in text
    assert "| strategy | points | control (600 to 8000 tokens) |" in text
    assert "| budget | 5 | 80% | 8.65 | 57.0% |" in text
    assert "| a\\|b | 1 | 0% |  | 50.0% |" in text
    assert "| budget | 5 |  | 8.65 |" in tables(joined(curve()))


def test_a_picture_has_a_curve_for_each_strategy() -> None:
    axes = draw(joined([*curve(), *curve("_other")])).axes[0]
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["budget", "_other"]
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_major_formatter()(2048) == "2048"
    assert draw(joined([result(tokens=0), result(budget=9)])).axes[0].get_xscale() == "linear"
    spent = joined([result(flops=5), result(budget=9, flops=3)])
    line = draw(spent, "flops").axes[0].lines[0]
    assert line.get_xdata().tolist() == [3, 5]
    with pytest.raises(ValueError, match="budget, budget 8, has no flops"):
        draw(joined([result()]), "flops")


def test_the_command_reads_directories_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = tmp_path / "run", tmp_path / "more.json"
    run.mkdir()
    (run / "strategies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve()))
    file.write_text(json.dumps(curve("votes")))
    assert main([str(run), str(file), "--high=5000"]) == 0
    assert (run / "budget.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "budget.md").read_text() in capsys.readouterr().out
    assert "| votes | 5 | 80% | 8.65 | 57.0% |" in (run / "budget.md").read_text()
    assert main([str(file), f"--output={tmp_path / 'x.pdf'}"]) == 2
    assert "is a PNG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "at least one"),
        ('{"strategy": "a"}', "expected a list of results"),
        ("[3]", "result 1 cannot be used: it holds a whole number"),
        (json.dumps([result(), {"strategy": "a", "tokens": 3}]), "result 2 cannot be used: it has no budget, accuracy"),
        (json.dumps([result(strategy=3)]), "strategy is a whole number"),
        (json.dumps([result(tokens=None)]), "tokens is null"),
        (json.dumps([result(tokens="nan")]), "tokens is a text"),
        (json.dumps([result(tokens=float("nan"))]), "tokens is a number .NaN"),
        (json.dumps([result(tokens=-1)]), "from 0 on"),
        (json.dumps([result(accuracy=True)]), "accuracy is true"),
        (json.dumps([result(accuracy=57)]), "a share from 0 to 1"),
        ("not", "not JSON"),
    ],
)
def test_bad_results_are_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message) as told:
        read_results(tmp_path / "x.json")
    assert "x.json" in str(told.value)


def test_missing_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"strategies\.jsonl"):
        read_results(tmp_path)
    (tmp_path / "strategies.jsonl").write_text("")
    with pytest.raises(ValueError, match="at least one"):
        read_results(tmp_path)
