"""Names and values in reports are text: in markdown, in spreadsheets, on a terminal and in pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from launch import report
from launch.results import choose_metrics, measure, read_results
from tests.launch.test_report import write_run

HOSTILE = (
    "a|b",
    "<b>x</b>",
    "`c`",
    "=1+1",
    "x\ny",
    "$\\frac$",
    "[red]",
    "_y",
    "a,b",
    "*z*",
    "@SUM(A1)",
    "\x1b]0;x\x07",
)


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, name in enumerate(HOSTILE):
        write_run(tmp_path / str(place), {"accuracy": -1.5}, [1.0, 2.0], {name: 1.0}, name=name, note=name)
    assert report.main([str(tmp_path), f"--metrics={','.join(('eval/accuracy', *HOSTILE))}"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed
    table = (tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()
    assert len(table) == len(HOSTILE) + 2
    assert {line.replace("\\|", "").count("|") for line in table} == {4 + len(HOSTILE)}, "as many cells in every row"
    rows = list(csv.DictReader((tmp_path / "table.csv").open(newline="")))
    assert [row["eval/accuracy"] for row in rows] == ["-1.5"] * len(HOSTILE)
    assert not any((cell or "").startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert {"'=1+1", "'@SUM(A1)", "a|b", "a,b", "<b>x</b>"} < {row["note"] for row in rows}


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *(("=1+1", "'=1+1"), ("-x", "'-x"), ("+1+1", "'+1+1"), ("@a", "'@a"), ("\t=1", "'\\t=1"), ("\r=1", "'\\r=1")),
        *((-1.5, -1.5), ("-1.5", "-1.5"), ("-1e-3", "-1e-3"), (True, True), (None, None), ([1, 2], "[1, 2]"), ("", "")),
    ],
)
def test_cells_are_no_formulas(value: Any, cell: Any) -> None:
    assert report.in_spreadsheet(value) == cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("balance=none,seed=0", "balance=none,seed=0"),
        ("eval/answer_loss", "eval/answer_loss"),
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("<b>&", "&lt;b>&amp;"),
        ("_x_ $y$ [z]", r"\_x\_ \$y\$ \[z\]"),
        ("a\nb", r"a\\nb"),
    ],
)
def test_cells_are_text(text: str, shown: str) -> None:
    assert report.in_markdown(text) == shown


def test_metrics_may_hold_commas_and_colons(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"accuracy_kind_a,b": 0.5, "accuracy_at_12:30": 0.25}, [2.0, 2.0], {"n": 4.0})
    runs, _ = read_results(tmp_path)
    asked = ["eval/accuracy_kind_a,b", "n:loss", "eval/accuracy_at_12:30", "loss"]
    assert choose_metrics(runs, ",".join(asked)) == asked
    assert [measure(runs[0], name) for name in asked] == [0.5, 2.0, 0.25, 2.0]
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        choose_metrics(runs, "n:lost")
